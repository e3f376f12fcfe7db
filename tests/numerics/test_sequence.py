"""The sequence model against a dense float64 transformer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tripletune.models.sequence.encode import encode
from tripletune.models.sequence.events import Events
from tripletune.models.sequence.model import EventModel, Shape, Window, time_bucket

SHAPE = Shape(
    num_movies=30,
    num_levels=5,
    dim=8,
    layers=2,
    heads=2,
    max_length=20,
    block="ligr",
    stars=True,
    time=True,
    positions=True,
    tied=True,
    temperature=0.0,
    request_time=False,
)

VARIANTS = (
    {},
    {"block": "hstu"},
    {"stars": False, "time": False},
    {"positions": False},
    {"temperature": 0.1},
    {"tied": False, "block": "hstu", "temperature": 0.2},
    {"request_time": True},
)

History = list[tuple[int, int, int]]


def some_model(**changes: object) -> EventModel:
    generator = torch.Generator().manual_seed(3)
    model = EventModel(dataclasses.replace(SHAPE, **changes), generator)
    with torch.no_grad():  # also what begins at zero or one
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.requires_grad_(False)


def some_histories(num_viewers: int) -> list[History]:
    rng = np.random.default_rng(8)
    lengths = [0, 1, 2, 20, 21, 60, *rng.integers(0, 40, num_viewers)][:num_viewers]
    return [
        list(
            zip(
                rng.integers(0, SHAPE.num_movies, length).tolist(),
                rng.integers(0, SHAPE.num_levels + 1, length).tolist(),
                np.cumsum(np.exp2(rng.uniform(0, 24, length)).astype(int)).tolist(),
                strict=True,
            )
        )
        for length in lengths
    ]


def table(histories: list[History]) -> Events:
    films, levels, times = ([event[column] for history in histories for event in history] for column in range(3))
    return Events(
        count_U=torch.tensor([len(history) for history in histories]),
        movie_E=torch.tensor(films, dtype=torch.int32),
        level_E=torch.tensor(levels, dtype=torch.uint8),
        time_E=torch.tensor(times, dtype=torch.int64),
        like_E=torch.ones(len(films), dtype=torch.bool),
    )


def bucket(seconds: int) -> int:
    """The bit length of a second more, less one."""
    return min(31, (max(0, seconds) + 1).bit_length() - 1)


def normalise(state: np.ndarray, gain: np.ndarray, offset: np.ndarray) -> np.ndarray:
    middle = state - state.mean()
    return middle / np.sqrt((middle**2).mean() + 1e-5) * gain + offset


def logistic(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def silu(values: np.ndarray) -> np.ndarray:
    return values * logistic(values)


def plain_vector(model: EventModel, history: History, asked_at: int = 0) -> np.ndarray:
    """The output at the last event, place by place and head by head in float64 numpy."""
    shape, weights = model.shape, {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    history = history[-shape.max_length :]
    times = [time for _, _, time in history]
    seen_from = [*times[1:], asked_at] if shape.request_time else times
    states = []
    for place, (film, level, time) in enumerate(history):
        state = weights["embedding_MD"][film]
        if shape.stars:
            state = state + weights["level_RD"][level]
        if shape.time:
            state = state + weights["gap_TD"][bucket(time - history[place - 1][2]) if place else 32]
        if shape.request_time:
            state = state + weights["request_TD"][bucket(seen_from[place] - time)]
        states.append(state)
    for layer in range(shape.layers):
        own = {name.split(".", 2)[2]: w for name, w in weights.items() if name.startswith(f"blocks.{layer}.")}

        def linear(name: str, values: np.ndarray, own: dict[str, np.ndarray] = own) -> np.ndarray:
            return own[f"{name}.weight"] @ values + own[f"{name}.bias"]

        normed = [normalise(state, own["norms.0.weight"], own["norms.0.bias"]) for state in states]
        query = np.stack([linear("query", x) for x in normed])
        known = np.stack([linear("known", x) for x in normed])
        if shape.block == "hstu":
            query, gate = np.split(silu(query), 2, axis=1)
            known = silu(known)
        key, value = np.split(known, 2, axis=1)
        width, after = shape.dim // shape.heads, []
        for place, state in enumerate(states):
            heads = []
            for head in range(shape.heads):
                mine = slice(head * width, (head + 1) * width)
                logits = np.zeros(place + 1)
                for other in range(place + 1):
                    logits[other] = query[place, mine] @ key[other, mine] / np.sqrt(width)
                    if shape.positions:
                        logits[other] += own["distance_HL"][head, place - other]
                    if shape.time:
                        logits[other] += own["time_TH"][bucket(seen_from[place] - times[other]), head]
                if shape.block == "hstu":
                    share = silu(logits) / shape.max_length
                else:
                    share = np.exp(logits - logits.max())
                    share /= share.sum()
                heads.append(share @ value[: place + 1, mine])
            read = np.concatenate(heads)
            if shape.block == "hstu":
                normed_read = normalise(read, own["norms.1.weight"], own["norms.1.bias"])
                after.append(state + linear("write", normed_read * gate[place]))
                continue
            mixed = state + linear("write", read) * 2 * logistic(linear("gates.0", normed[place]))
            inner = normalise(mixed, own["norms.1.weight"], own["norms.1.bias"])
            wide, open_ = np.split(linear("widen", inner), 2)
            after.append(mixed + linear("narrow", wide * silu(open_)) * 2 * logistic(linear("gates.1", inner)))
        states = after
    output = normalise(states[-1], weights["norm.weight"], weights["norm.bias"])
    return output / np.linalg.norm(output) if shape.temperature else output


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_user_is_the_dense_transformer_s_last_output(changes):
    model, histories = some_model(**changes), some_histories(10)
    asked_U = [(history[-1][2] if history else 0) + 50 * number for number, history in enumerate(histories)]
    events = dataclasses.replace(table(histories), asked_U=torch.tensor(asked_U))
    got_UD = encode(model, model.embedding_MD, events)
    for vector_D, history, asked_at in zip(got_UD, histories, asked_U, strict=True):
        want = plain_vector(model, history, asked_at) if history else np.zeros(SHAPE.dim)
        want_D = torch.from_numpy(want)
        # float32 through two blocks of sums over at most 20 events
        torch.testing.assert_close(vector_D.double(), want_D, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("tied", [True, False])
def test_films_are_scored_by_their_own_table_or_by_the_one_that_is_read(tied, temperature):
    model = some_model(tied=tied, temperature=temperature)
    want_MD = (model.embedding_MD if tied else model.output_MD).double()
    if temperature:
        want_MD = want_MD / want_MD.pow(2).sum(dim=1, keepdim=True).sqrt() / temperature
    torch.testing.assert_close(model.targets(model.scored_MD).double(), want_MD, rtol=1e-5, atol=1e-6)
    some_CD = model.scored_MD[[7, 2]]
    torch.testing.assert_close(model.targets(some_CD), model.targets(model.scored_MD)[[7, 2]])


def test_a_user_is_the_same_to_the_byte_with_any_other_users():
    model, histories = some_model(), some_histories(90)
    together_UD = encode(model, model.embedding_MD, table(histories))
    for viewer in range(0, 90, 7):
        assert encode(model, model.embedding_MD, table([histories[viewer]]))[0].tolist() == together_UD[viewer].tolist()
    assert encode(model, model.embedding_MD, table(histories[::-1])).flip(0).tolist() == together_UD.tolist()


def test_later_events_say_nothing_to_earlier_places():
    for changes in VARIANTS:
        model, events = some_model(**changes), table([some_histories(6)[5][:20]])
        window = Window(*(part.long().unsqueeze(0) for part in (events.movie_E, events.level_E, events.time_E)))
        window = dataclasses.replace(window, asked_BL=window.time_BL + 77)
        later = torch.arange(20) >= 12
        changed = Window(
            torch.where(later, (window.movie_BL + 1) % 30, window.movie_BL),
            torch.where(later, (window.level_BL + 1) % 5, window.level_BL),
            torch.where(later, window.time_BL + 10**8, window.time_BL),
            window.asked_BL + later * 10**8,
        )
        one, two = (model(model.embedding_MD, part)[0] for part in (window, changed))
        assert torch.equal(one[:12], two[:12])
        assert not torch.allclose(one[12:], two[12:])


def test_the_time_of_the_request_is_read_only_where_it_is_set():
    histories = some_histories(8)
    last_U = torch.tensor([history[-1][2] if history else 0 for history in histories])
    for reads_it in (False, True):
        model = some_model(request_time=reads_it)
        vectors = [
            encode(model, model.embedding_MD, dataclasses.replace(table(histories), asked_U=asked_U))
            for asked_U in (None, last_U, last_U + 10**6)
        ]
        # unknown: as asked at once after the newest event
        assert torch.equal(vectors[0], vectors[1])
        changed_U = (vectors[1] != vectors[2]).any(dim=1)
        assert changed_U.tolist() == [reads_it and bool(history) for history in histories]


def test_buckets_of_time_are_powers_of_two():
    seconds = [-5, 0, 1, 2, 3, 6, 7, 14, 15, 86_400, 2**31 - 2, 2**31 - 1, 2**40]
    assert time_bucket(torch.tensor(seconds)).tolist() == [bucket(one) for one in seconds]
