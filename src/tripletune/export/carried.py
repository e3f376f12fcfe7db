"""What an export can't carry of what a run serves: behaviour tokens, and the sum with the retriever's scores.

Other programs read text and return the language model's own scores. Film vectors, the projector that makes tokens of
them, and the retriever's order are inputs that only ``tripletune recommend`` and the rank stage have.
"""

from __future__ import annotations

from tripletune.contract import AdapterContract
from tripletune.errors import ContractError


def not_carried(contract: AdapterContract) -> list[str]:
    """One sentence for each part of the served system that no export has; empty where the language model is all."""
    lost = []
    if contract.behaviour:
        lost.append(
            "Behaviour tokens are dropped: the model was trained to read after each title a token made of the film's "
            f"vector from {contract.behaviour.source}; here it reads titles alone, for which nothing was measured."
        )
    if contract.residual and contract.residual.weight:
        lost.append(
            "The retriever's scores are dropped: what the run serves adds them to the model's, whose weight in the sum "
            f"is {contract.residual.weight:g}; here candidates have the model's scores alone."
        )
    elif contract.residual:
        lost.append(
            "The retriever's order is dropped: the run serves nothing else (the model's weight in the sum is 0); here "
            "candidates have the model's scores alone."
        )
    if contract.ensemble:
        lost.append(
            f"The forms {', '.join(contract.ensemble.forms)} are dropped: the run serves an order by the answers to "
            "all forms of a prompt; here candidates have the scores of the list's prompt alone."
        )
    return lost


def require_carried(contract: AdapterContract, run: str) -> None:
    """Refuse to export a model that answers otherwise alone than in the run.

    Raises:
        ContractError: a part of what the run serves can't be exported.
    """
    parts = []
    if contract.behaviour:
        parts.append("behaviour tokens")
    if contract.residual:
        parts.append("the retriever's scores")
    if contract.ensemble:
        parts.append("further forms of its prompts")
    if parts:
        raise ContractError(
            f"run {run!r} serves its model with {' and '.join(parts)}, which no export carries; add --text-only to "
            "export the language model alone, or serve the whole with: tripletune recommend"
        )
