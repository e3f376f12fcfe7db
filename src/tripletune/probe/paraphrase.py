"""The same instructions in other words, for the shipped English templates and those that take lines from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tripletune.prompts.template import Template

_IN_OTHER_WORDS: Mapping[str, str] = {
    "You recommend films to one viewer.": "Your task is to suggest films to a single person.",
    "You see what the viewer liked and disliked, a ranking by a recommender that knows who watches what, and facts "
    "from a knowledge graph chosen for this viewer.": "You are shown which films this person enjoyed and did not "
    "enjoy, how a recommender that knows who watches what ranks some of them, and facts from a knowledge graph picked "
    "for this person.",
    "You see what the viewer liked and disliked, and a ranking by a recommender that knows who watches what.": "You "
    "are shown which films this person enjoyed and did not enjoy, and how a recommender that knows who watches what "
    "ranks some of them.",
    "You see what the viewer liked and disliked, and facts from a knowledge graph chosen for this viewer.": "You are "
    "shown which films this person enjoyed and did not enjoy, and facts from a knowledge graph picked for this person.",
    "You see what the viewer liked and disliked.": "You are shown which films this person enjoyed and did not enjoy.",
    "You see what the viewer liked.": "You are shown which films this person enjoyed.",
    "After a candidate's title stand its rank by a recommender (#1 is best), its rank by a graph recommender if high, "
    "and facts that matter to this viewer.": "Behind the title of a candidate you find where a recommender ranks it "
    "(#1 is best), where a graph recommender ranks it if that is high, and facts that matter to this person.",
    "You see what the viewer's liked films have in common, what the viewer liked and disliked lately, a ranking by a "
    "recommender that knows who watches what, and facts from a knowledge graph chosen for this viewer.": "You are "
    "shown what the films this person enjoyed share, which ones this person enjoyed and did not enjoy lately, how a "
    "recommender that knows who watches what ranks some of them, and facts from a knowledge graph picked for this "
    "person.",
    "From what a viewer liked and disliked you say whether the viewer will like a film, which of two films the viewer "
    "prefers, or how the viewer would rank a list.": "You are shown which films a person enjoyed and did not enjoy, "
    "and tell whether this person will enjoy a film, which of two films this person prefers, or in what order this "
    "person would put a list.",
    "After a film's title stands its place in the list of another recommender (#1 is best).": "Behind the title of a "
    "film you find its place in the list of another recommender (#1 is best).",
    "How would the viewer rank these films?": "In what order would this person put the following films?",
    "Given a user's history, recommend a film from the candidate pool by its index letter.": "Read what this user "
    "enjoyed, and pick a film of the candidate pool by its index letter.",
    "User history, newest first:": "What this user enjoyed, most recent first:",
    "Candidate pool:": "Films in the candidate pool:",
    "What many films that the viewer liked have in common, most striking first:": "What a lot of the films that this "
    "person enjoyed share, most remarkable first:",
    "Films the viewer liked, newest first:": "What this person enjoyed, most recent first:",
    "Films the viewer disliked, newest first:": "What this person did not enjoy, most recent first:",
    "Which of these films will the viewer like next?": "Which of the following films is this person going to enjoy "
    "next?",
}
"""Sentences and lines of the templates. What names the format of the answer stays: it is not wording alone."""


def paraphrase(template: Template) -> Template | None:
    """The template with each known sentence in other words; None where it has none of them.

    It keeps its id and hash, which stand in no prompt.
    """

    def reworded(text: str) -> str:
        for sentence, other in _IN_OTHER_WORDS.items():
            text = text.replace(sentence, other)
        return text

    other = replace(template, system=reworded(template.system), texts=tuple(reworded(text) for text in template.texts))
    return None if other == template else other
