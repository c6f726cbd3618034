"""Every verb's options, once: the fields below are the command line, the YAML keys and the Python API.

Imports no torch, so that ``truing VERB --help`` is quick. A docstring under a field is its help text.
"""

from truing.configs.collect import Serve as Serve
from truing.configs.common import Adapters as Adapters
from truing.configs.common import Common as Common
from truing.configs.common import Optim as Optim
from truing.configs.common import alias as alias
from truing.configs.common import shown as shown
from truing.configs.measure import Bias as Bias
from truing.configs.measure import Choices as Choices
from truing.configs.measure import Code as Code
from truing.configs.measure import EloConfig as EloConfig
from truing.configs.measure import Eval as Eval
from truing.configs.measure import PIKTrain as PIKTrain
from truing.configs.measure import PTrue as PTrue
from truing.configs.measure import Writers as Writers
from truing.configs.pm import PMOOD as PMOOD
from truing.configs.pm import PMEval as PMEval
from truing.configs.pm import PMMixing as PMMixing
from truing.configs.pm import PMPretrain as PMPretrain
from truing.configs.pm import PMProbe as PMProbe
from truing.configs.pm import PMScaling as PMScaling
from truing.configs.pm import PMTrain as PMTrain
from truing.configs.rlhf import CodeStudy as CodeStudy
from truing.configs.rlhf import Distill as Distill
from truing.configs.rlhf import Finetune as Finetune
from truing.configs.rlhf import PPOTrain as PPOTrain
from truing.configs.rlhf import WritePrompts as WritePrompts
from truing.configs.store import StoreBackup as StoreBackup
from truing.configs.store import StoreCommon as StoreCommon
from truing.configs.store import StoreErase as StoreErase
from truing.configs.store import StoreExport as StoreExport
from truing.configs.store import StoreImport as StoreImport
from truing.configs.store import StorePerson as StorePerson
from truing.configs.store import StoreRestore as StoreRestore
from truing.configs.studies import Frontier as Frontier
from truing.configs.studies import Robustness as Robustness
from truing.configs.studies import StudyPM as StudyPM
from truing.configs.studies import StudyPPO as StudyPPO
from truing.configs.studies import Tension as Tension
from truing.configs.use import Chat as Chat
from truing.configs.use import Compare as Compare
from truing.configs.use import DataCheck as DataCheck
from truing.configs.use import DataConvert as DataConvert
from truing.configs.use import DataPairs as DataPairs
from truing.configs.use import Demo as Demo
from truing.configs.use import Doctor as Doctor
from truing.configs.use import Recipe as Recipe
from truing.configs.use import ReportConfig as ReportConfig
from truing.configs.use import Runs as Runs
from truing.configs.use import Sampling as Sampling
from truing.configs.use import Scoring as Scoring
