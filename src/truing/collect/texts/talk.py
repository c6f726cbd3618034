"""Texts of conversations: helpful mode, ranking, and what red teaming shares with them."""

from __future__ import annotations

_HELPFUL = """
# What this is about

You talk with an assistant that answers in writing. At every turn you see two replies, A and B, and say which one is
better and by how much. The conversation goes on from your choice. Your choices teach an assistant to help people.

# How to talk

Ask for help with anything that can be done in writing: an essay from notes, fractions explained to a child, a letter
to a landlord, a recipe for what is in the fridge, a piece of code that does not work. Talk as you would to a friend
who knows a lot. If a reply is wrong or misses the point, say so in your next message.

# How to choose

- Choose the reply that is more helpful and more honest. A reply that makes things up does not help.
- Check what you can check. Invented facts, sources, addresses and numbers are bad, however well they are written.
- A reply that asks for what it needs to know may be better than one that guesses; needless questions and chatter are
not.
- If something harmful is asked for, a polite refusal with a reason is the better reply.
- The large buttons mean a clear difference. If both are about the same, or both are bad, press the smallest button.

# What to expect

The assistant cannot look anything up. It does not know recent events, and may state wrong things with confidence. It
is a machine, and not always the same one.

> What you write is kept and used for research, and may be published without your name. Do not write anything personal
> about yourself or about others: no names, addresses, numbers or passwords.

Taking part is voluntary. You can stop at any time; what you have done until then counts.
""".strip()

_RANK = """
# What this is about

You write a message, and see three replies to it. They may come from different assistants, and some from people; you
are not told which. Put them in order, the best first. The conversation goes on from the best one.

# How to rank

- Best is what helps most and is honest about what it does not know.
- Invented facts, sources and numbers are bad, however well they are written.
- Length and politeness alone make a reply no better.

If you like, write a reply of your own before you see the others. It then stands among the three, and you rank it as
you would any other.

> What you write is kept and used for research, and may be published without your name. Do not write anything personal
> about yourself or about others: no names, addresses, numbers or passwords.

Taking part is voluntary. You can stop at any time; what you have done until then counts.
""".strip()

ENGLISH = {
    "consent.helpful": _HELPFUL,
    "consent.rank": _RANK,
    "consent.button": "I have read this and agree",
    "consent.given": "You have agreed to this.",
    "consent.go": "Go on",
    "consent.no": "Not now",
    "helpful.title": "Helpful chat",
    "helpful.question": "Which reply is more helpful and honest?",
    "helpful.a": "A is better",
    "helpful.b": "B is better",
    "rank.title": "Ranking",
    "rank.question": "Put the replies in order, the best first.",
    "talk.script": "This page needs JavaScript: please allow it for this site.",
    "talk.instructions": "Instructions",
    "talk.close": "Close",
    "talk.task": "Conversation {of} of {size}",
    "talk.turns": "Turn {turn}, about {suggested} suggested",
    "talk.you": "You",
    "talk.assistant": "Assistant",
    "talk.message": "Your message",
    "talk.send": "Send",
    "talk.send_keys": "Ctrl + Enter sends",
    "talk.first": "What would you like help with?",
    "talk.waiting": "Both replies are being written. They appear together.",
    "talk.waiting_stream": "The replies are being written.",
    "talk.queue": "Waiting: {n} before you.",
    "talk.reply": "Reply {key}",
    "talk.own": "your own",
    "talk.empty": "(This reply is empty.)",
    "talk.unsure": "about the same",
    "talk.strength": "{key} is better: {how}",
    "talk.strengths": "about the same or unsure|slightly|clearly|much",
    "talk.choice_keys": "Keys 1 to 8, or the arrows and Enter",
    "talk.edit": "Improve {key} before going on",
    "talk.edit_label": "Your version of reply {key}",
    "talk.edit_cancel": "Leave it as it is",
    "talk.edit_help": "Press the button of your choice; the conversation goes on with your version.",
    "talk.own_reply": "Write a reply of your own first",
    "talk.own_label": "Your own reply to your message",
    "talk.place": "Place {place}",
    "talk.rank_keys": "Keys A, B, C in the order of your ranking; Backspace takes one back; Enter confirms",
    "talk.rank_confirm": "Confirm this order",
    "talk.rank_clear": "Start over",
    "talk.same": "Both replies came out the same, twice. Press one of the smallest buttons, and go on.",
    "talk.failed": "The replies could not be made just now. Nothing is lost: try again, or finish the conversation.",
    "talk.retry": "Try again",
    "talk.finish": "Finish this conversation",
    "talk.back": "Back to the conversation",
    "talk.end_title": "How was this conversation?",
    "talk.rating": "All in all, how good were the replies?",
    "talk.low": "bad",
    "talk.high": "good",
    "talk.comment": "Comment (if you like)",
    "talk.comment_hint": "I thought the assistant …",
    "talk.submit": "Submit",
    "talk.done": "Thank you. This conversation is finished.",
    "talk.next": "Next conversation",
    "talk.task_done": "You have finished all {size} conversations of this task.",
    "talk.new_task": "Start another task",
    "talk.home": "Back to the start",
    "talk.withdrawn": "This conversation was withdrawn. Nobody can read it any more.",
    "talk.consent": "The instructions have changed. Please read them, then go on where you were.",
    "talk.read": "Read the instructions",
    "talk.offline": "No connection. What you wrote is kept in this browser; we keep trying.",
    "talk.saved": "Saved",
    "talk.none": "There is no model to talk with at the moment.",
    "home.progress": "{done} of {size} conversations of this task done",
    "home.open": "A conversation is waiting for you.",
    "home.total": "{n} conversations in all",
}

GERMAN = {
    "consent.button": "Ich habe das gelesen und bin einverstanden",
    "consent.given": "Sie haben dem zugestimmt.",
    "consent.go": "Weiter",
    "consent.no": "Jetzt nicht",
    "helpful.title": "Hilfreiches Gespräch",
    "helpful.question": "Welche Antwort ist hilfreicher und ehrlicher?",
    "helpful.a": "A ist besser",
    "helpful.b": "B ist besser",
    "rank.title": "Rangfolge",
    "rank.question": "Ordnen Sie die Antworten, die beste zuerst.",
    "talk.instructions": "Anleitung",
    "talk.close": "Schließen",
    "talk.task": "Gespräch {of} von {size}",
    "talk.turns": "Runde {turn}, etwa {suggested} empfohlen",
    "talk.you": "Sie",
    "talk.assistant": "Assistent",
    "talk.message": "Ihre Nachricht",
    "talk.send": "Senden",
    "talk.send_keys": "Strg + Enter sendet",
    "talk.waiting": "Beide Antworten werden geschrieben. Sie erscheinen gemeinsam.",
    "talk.waiting_stream": "Die Antworten werden geschrieben.",
    "talk.queue": "Bitte warten: {n} vor Ihnen.",
    "talk.reply": "Antwort {key}",
    "talk.unsure": "etwa gleich",
    "talk.strength": "{key} ist besser: {how}",
    "talk.strengths": "etwa gleich oder unsicher|etwas|deutlich|viel",
    "talk.choice_keys": "Tasten 1 bis 8, oder Pfeile und Enter",
    "talk.edit": "{key} verbessern",
    "talk.rank_confirm": "Diese Reihenfolge bestätigen",
    "talk.rank_clear": "Von vorn",
    "talk.retry": "Noch einmal versuchen",
    "talk.finish": "Gespräch beenden",
    "talk.back": "Zurück zum Gespräch",
    "talk.submit": "Absenden",
    "talk.next": "Nächstes Gespräch",
    "talk.new_task": "Neue Aufgabe beginnen",
    "talk.home": "Zur Startseite",
}
