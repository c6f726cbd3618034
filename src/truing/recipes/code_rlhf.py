"""Does natural-language RLHF cost a code model its code? (2204.05862 §5.3): the verb ``rlhf code``.

A language model is finetuned on Python, then trained by PPO on natural-language prompts against a preference model
that has seen no code. pass@k of both on the same problems, on the same grid of settings, problem by problem.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from truing.configs import Code, CodeStudy, Finetune, PPOTrain
from truing.data import sandbox
from truing.data.code_tasks import CodeTask, load_tasks, task_to_row
from truing.data.easy_functions import easy_tasks, solved
from truing.data.files import write_rows
from truing.data.prompts import PromptRow, load_prompt_rows
from truing.measure.code import Plan, check_room, code, plan_of
from truing.models.heads import FACTS, PreferenceModel
from truing.models.lm import LM
from truing.models.load import find_model, model_file
from truing.recipes.study_parts import Stopped, check_models, finished, folders, model_hashes
from truing.report.drawing_code import code_figures
from truing.report.page import write_story
from truing.runs import Run
from truing.runs.atomic import as_json
from truing.train.ppo import train_ppo
from truing.train.ppo_reward import RewardFn, load_reward, reward_identity
from truing.train.ppo_setup import check as check_ppo
from truing.train.ppo_setup import data_hash as prompts_hash
from truing.train.sft import check as check_lm
from truing.train.sft import train_lm

FINETUNED, RLHF, MEASURED = "finetuned", "rlhf", "pass-at-k"
FROM_RL = ("pm_score_gain", "kl", "reply_tokens")


def code_study(
    config: CodeStudy,
    *,
    lm: LM | None = None,
    pm: PreferenceModel | None = None,
    reward_fn: RewardFn | None = None,
    prompts: Sequence[PromptRow] | None = None,
    tasks: Sequence[CodeTask] | None = None,
) -> Run | dict[str, Any]:
    """The verb: child runs ``finetuned``, ``rlhf`` and ``pass-at-k``, the last one's numbers and figures, and a page.

    ``lm``, ``pm`` or ``reward_fn`` (dialogues → one number each), ``prompts`` and ``tasks`` (to measure on) stand in
    for what the config names. Without ``data`` the model learns from the training half of the easy functions, without
    ``problems`` it is measured on the other half: the same families, other names and constants. The same call again
    resumes. Raises NoSandbox where programs cannot be run, ValueError for what the three steps refuse.
    """
    if problem := sandbox.why_not():
        raise sandbox.NoSandbox(f"Programs that a model writes run only in a sandbox, and there is none: {problem}")
    if tasks is None:
        tasks = load_tasks(config.problems) if config.problems else easy_tasks(split="test")
    rows = list(prompts) if prompts is not None else load_prompt_rows(config.prompts)
    known = _checked(config, lm, pm, reward_fn)
    texts = None if config.data else [solved(task) for task in easy_tasks(split="train")]
    if config.dry_run:
        return {"lines": _expected(config, lm, texts, tasks, rows)}
    known |= model_hashes({"model": lm} if lm else None)
    known |= {"problems": hashlib.sha256(as_json([task_to_row(t) for t in tasks]).encode()).hexdigest()}
    known |= {"prompts": prompts_hash(rows)}
    run = Run.open("rlhf code", config, data_files=config.data, data_hashes=known, slug=Path(config.model).name)
    if run.done:
        return run
    compute = run.compute(config)
    plan = dataclasses.replace(_plan(config), tasks=tuple(tasks))
    check_room(lm or LM.load(config.model, device=compute.device, dtype=compute.dtype), plan)
    write_rows(run.path / "problems.jsonl", [task_to_row(task) for task in tasks])
    start = folders(run, [config.model], {"model": lm} if lm else None).popitem()[1]
    try:
        finished(run, config, FINETUNED, lambda same: train_lm(_finetune(config, start, **same), texts=texts))
        policy = finished(
            run,
            config,
            RLHF,
            lambda same: train_ppo(_ppo(config, run.path, **same), prompts=rows, pm=pm, reward_fn=reward_fn),
        )
        measured = finished(run, config, MEASURED, lambda same: code(_code(config, run.path, **same)))
    except Stopped as stop:
        run.stop({}, [str(stop)])
        return run
    _finish(run, policy, measured)
    return run


def _checked(
    config: CodeStudy, lm: LM | None, pm: PreferenceModel | None, reward_fn: RewardFn | None
) -> dict[str, str]:
    """Refuse now what one of the three steps would refuse after hours; what stands for the reward in the identity."""
    if lm is None:
        check_models([config.model])
    everywhere: dict[str, Any] = {"seed": config.seed}
    check_lm(_finetune(config, config.model or "given", **everywhere))
    check_ppo(_ppo(config, Path(), **everywhere))
    _plan(config)
    known = reward_identity(pm, reward_fn)
    if known:
        return known
    if bool(config.pm) == bool(config.reward):
        raise ValueError("The reward is a preference model (--pm) or your own (--reward): give one of the two.")
    if config.pm:
        if model_file(find_model(config.pm), FACTS, config.pm) is None:
            raise ValueError(f"--pm {config.pm} is no preference model: expected a run of `pm train` or its folder.")
        return {}
    return {config.reward: load_reward(config.reward)[1]}


def _plan(config: CodeStudy) -> Plan:
    """How the last step measures, with the easy functions as problems."""
    return plan_of(dataclasses.replace(_code(config, Path(), seed=config.seed), problems=None))


def _finetune(config: CodeStudy, start: str, **same: Any) -> Finetune:
    return Finetune(
        init=start,
        data=list(config.data),
        eval_share=0.1,
        learning_rate=config.finetune_learning_rate,
        epochs=config.finetune_epochs,
        **same,
    )


def _ppo(config: CodeStudy, folder: Path, **same: Any) -> PPOTrain:
    names = ("pm", "reward", "steps", "prompts_per_step", "samples_per_prompt", "max_new_tokens", "kl_coef")
    given = {name: getattr(config, name) for name in names}
    return PPOTrain(policy=str(folder / FINETUNED), prompts=[], learning_rate=config.learning_rate, **given, **same)


def _code(config: CodeStudy, folder: Path, **same: Any) -> Code:
    return Code(
        model=str(folder / RLHF),
        before=str(folder / FINETUNED),
        problems=str(folder / "problems.jsonl"),
        samples=config.samples,
        ks=config.ks,
        temperatures=config.temperatures,
        top_ps=config.top_ps,
        max_new_tokens=config.max_code_tokens,
        **same,
    )


def _finish(run: Run, policy: Run, measured: Run) -> None:
    summary, rl = measured.summary(), policy.summary()["numbers"]
    numbers = {**summary["numbers"], **{name: rl[name] for name in FROM_RL}}
    (run.path / "grid.csv").write_bytes((measured.path / "grid.csv").read_bytes())
    drawn = code_figures(run.path, {"verb": "code", "numbers": numbers})
    gap = {k: v for k, v in numbers.items() if k.endswith("/difference")}
    write_story(
        run.path,
        {
            "title": "Code before and after natural-language RLHF",
            "subtitle": "A model learned Python, then PPO on prompts without code; does it still write functions?",
            "sections": [
                {
                    "title": "What RLHF changed",
                    "text": "pass@k after RLHF − before, problem by problem. An interval over 0 is no change. The best "
                    "setting of the grid is searched for both models alike; the fixed one is the same for both.",
                    "numbers": gap,
                },
                {"title": "pass@k", "figures": drawn, "notes": summary["notes"]},
                {
                    "title": "How far the policy went",
                    "text": "Gain on its own preference model or reward, KL from the finetuned model per reply (nats).",
                    "numbers": {name: rl[name] for name in FROM_RL},
                },
                {"title": "Functions", "samples": measured.samples()[:24]},
            ],
        },
    )
    run.finish(numbers, [f"before is {FINETUNED}; the others are {RLHF}.", *summary["notes"][1:]])


def _expected(
    config: CodeStudy, lm: LM | None, texts: list[str] | None, tasks: Sequence[CodeTask], rows: Sequence[PromptRow]
) -> list[str]:
    """What the first step would take, measured; the others begin with a model that is not there yet."""
    same: dict[str, Any] = {"seed": config.seed, "device": config.device, "dtype": config.dtype, "dry_run": True}
    found = train_lm(_finetune(config, config.model, threads=config.threads, **same), texts=texts, lm=lm)
    assert isinstance(found, dict)
    replies = config.steps * config.prompts_per_step * config.samples_per_prompt
    return [
        "Finetuning:",
        *found["lines"],
        f"PPO: {replies:,} replies to {len(rows):,} prompts, at most {replies * config.max_new_tokens:,} tokens.",
        f"pass@k of two models: {len(tasks):,} problems, at most {config.samples} completions each at "
        f"{len(config.temperatures) * len(config.top_ps)} settings. `truing code --dry-run` measures it.",
    ]
