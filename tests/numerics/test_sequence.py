"""The sequence model against a dense float64 transformer, its streams and training, and its vectors in retrieval."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.graph_cases import FIRST_MOVIE, plant_split
from tripletune.config import SequenceConfig
from tripletune.errors import InputError
from tripletune.models.sequence.encode import ask_next, encode
from tripletune.models.sequence.events import Events, find_levels, read_streams, to_level
from tripletune.models.sequence.fit import SequenceTrainer, find_targets, model_shape, train_sequence
from tripletune.models.sequence.model import EventModel, Shape, Window, time_bucket
from tripletune.models.sequence.serve import load_sequence
from tripletune.models.serving.catalogue import Likes as ServedLikes
from tripletune.models.serving.catalogue import RatingEvents
from tripletune.models.serving.retriever import Histories
from tripletune.models.serving.topk import Ragged
from tripletune.models.training.interactions import Interactions, Likes, read_interactions
from tripletune.models.training.loop import judge
from tripletune.schemas.base import conform
from tripletune.schemas.split import SPLIT
from tripletune.store.catalogue import write_catalogue

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


def some_model(**changes: object) -> EventModel:
    generator = torch.Generator().manual_seed(3)
    model = EventModel(dataclasses.replace(SHAPE, **changes), generator)
    with torch.no_grad():  # also what begins at zero or one
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.requires_grad_(False)


History = list[tuple[int, int, int]]
"""Film, level of the stars, time; oldest first."""


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


def test_buckets_of_time_are_powers_of_two():
    seconds = [-5, 0, 1, 2, 3, 6, 7, 14, 15, 86_400, 2**31 - 2, 2**31 - 1, 2**40]
    assert time_bucket(torch.tensor(seconds)).tolist() == [bucket(one) for one in seconds]


def test_levels_are_the_ratings_there_are_and_a_rating_gets_the_nearest():
    levels_R = find_levels(np.array([4.0, 0.5, 3.0, 4.0], dtype=np.float32))
    assert levels_R.tolist() == [0.5, 3.0, 4.0]
    given = np.array([0.5, 1.0, 3.2, 4.0, 5.0, np.nan], dtype=np.float32)
    assert to_level(given, levels_R).tolist() == [1, 1, 2, 3, 3, 0]
    many = find_levels(np.linspace(0, 100, 5001, dtype=np.float32))
    assert len(many) == 20
    assert (many[0], many[-1]) == (0.0, 100.0)


ROWS = [
    # user, film, rating, time, position, label, unseen
    (1, 10, 4.0, 5, 0, "graph", False),
    (1, 11, 1.0, 6, 1, "other", False),
    (1, 12, 4.5, 7, 2, "graph", False),
    (1, 13, 2.0, 8, 3, "other", False),
    (1, 14, 5.0, 9, 4, "target", False),
    (1, 15, 3.0, 9, 5, "other", False),
    (1, 16, 4.0, 20, 6, "valid", False),
    (1, 17, 2.5, 21, 7, "other", False),
    (1, 18, 4.0, 22, 8, "test", False),
    (2, 10, 4.0, 1, 0, "graph", True),
    (3, 10, 1.0, 2, 0, "other", False),
    (3, 11, 4.0, 3, 1, "graph", False),
    (3, 12, 1.0, 4, 2, "other", False),
]


def streams_of(folder: Path, rows: list[tuple[object, ...]], *, only_likes: bool = False):
    part = folder / "shard=000" / "part.parquet"
    part.parent.mkdir(parents=True)
    conform(pl.DataFrame(rows, schema=SPLIT.names(), orient="row"), SPLIT).write_parquet(part)
    write_catalogue(folder, {row[1] for row in rows})
    interactions = read_interactions(folder)
    return interactions, read_streams(folder, interactions, only_likes=only_likes)


def films(interactions: Interactions, events: Events) -> list[list[int]]:
    ids = [interactions.movie_ids_M[part.numpy()].tolist() for part in events.movie_E.split(events.count_U.tolist())]
    return [list(map(int, one)) for one in ids]


def test_a_fit_s_stream_ends_with_its_last_like_and_holds_no_other_like(tmp_path):
    interactions, streams = streams_of(tmp_path, ROWS)
    assert films(interactions, streams.fits["a"]) == [[10, 11, 12], [10, 11]]
    assert films(interactions, streams.fits["b"]) == [[10, 11, 12, 13, 14], [10, 11]]
    assert streams.fits["b"].like_E.tolist() == [True, False, True, False, True, False, True]
    assert streams.levels_R[streams.fits["b"].level_E[:5].long() - 1].tolist() == [4.0, 1.0, 4.5, 2.0, 5.0]
    assert films(interactions, streams.valid) == [[10, 11, 12, 13, 14, 15]]


def test_the_stream_of_likes_alone(tmp_path):
    interactions, streams = streams_of(tmp_path, ROWS, only_likes=True)
    assert films(interactions, streams.fits["b"]) == [[10, 12, 14], [11]]
    assert films(interactions, streams.valid) == [[10, 12, 14]]


def test_places_before_a_like_are_predicted_and_know_what_came_before(tmp_path):
    _, streams = streams_of(tmp_path, ROWS)
    events = streams.fits["b"]
    row_BW, length_B = torch.tensor([[0, 1, 2, 3, 4], [5, 6, 0, 0, 0]]), torch.tensor([5, 2])
    targets, asked_BL = find_targets(events, row_BW, length_B, 0.0)
    assert asked_BL.tolist() == [[False, True, False, True], [True, False, False, False]]
    film = events.movie_E.long()
    assert targets.movie_R.tolist() == film[[2, 4, 6]].tolist()
    assert targets.weight_R.tolist() == pytest.approx([1 / 3] * 3)
    assert targets.known_user_K.tolist() == [0, 0, 1, 1, 1, 1, 2]
    assert targets.known_movie_K.tolist() == film[[0, 1, 0, 1, 2, 3, 5]].tolist()
    targets, asked_BL = find_targets(events, row_BW, length_B, 0.5)
    assert asked_BL.tolist() == [[True] * 4, [True, False, False, False]]
    assert targets.weight_R.tolist() == pytest.approx([0.125, 0.25, 0.125, 0.25, 0.25])


def settings(**changes: object) -> SequenceConfig:
    small = {
        "dim": 16,
        "max_length": 20,
        "max_steps": 60,
        "eval_every": 10,
        "batch_viewers": 64,
        "learning_rate": 0.01,
    }
    return SequenceConfig.model_validate(small | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sequence")
    plant_split(folder / "split")
    (folder / "out").mkdir()
    train_sequence(folder / "split", folder / "out", settings(), 7)
    return folder / "split", folder / "out"


def test_planted_tastes_are_found(trained):
    curve = pl.read_parquet(trained[1] / "curve.parquet").filter(pl.col("fit") == "b")
    # an answer has a random place among the 20 films of the user's half that are left: .23 on average, .09 without
    # any taste
    assert curve["valid_ndcg_at_10"].max() > 0.16


def some_content(num_films: int, width: int) -> torch.Tensor:
    content_MX = torch.randn(num_films, width, generator=torch.Generator().manual_seed(4))
    return torch.nn.functional.normalize(content_MX, dim=1)


def trainer_of(split: Path, *, content: bool = False, **changes: object) -> tuple[Interactions, SequenceTrainer]:
    interactions = read_interactions(split)
    streams, config = read_streams(split, interactions), settings(**changes)
    shape = model_shape(config, interactions.num_movies, len(streams.levels_R))
    content_MX = some_content(interactions.num_movies, 12) if content else None
    fit = streams.fits["b"], interactions.fits["b"]
    return interactions, SequenceTrainer(*fit, streams.valid, shape, config, 1, content_MX)


def given(rows: list[tuple[int, int, float, int, bool]], num_users: int) -> Histories:
    """Histories of user, film, rating, time and whether it is a like."""
    columns = [np.array([row[column] for row in rows]) for column in range(5)]
    user_E, movie_E, rating_E, time_E, like_E = columns
    nothing = np.zeros(0, dtype=np.int64)
    return Histories(
        likes=ServedLikes(nothing, nothing, nothing),
        events=RatingEvents(user_E, movie_E, rating_E.astype(np.float32), time_E, like_E.astype(bool)),
        seen=Ragged.from_pairs(nothing, nothing, num_users),
        lightgcn_UD=torch.zeros(num_users, 2),
    )


def test_what_retrieval_reads_scores_like_what_was_trained(trained):
    split, out = trained
    interactions, trainer = trainer_of(split)
    trainer._model.load_state_dict(load_file(out / "fit_b.safetensors"))
    want_UM = trainer.scorer(interactions.valid.likes, torch.zeros(0))(
        torch.arange(interactions.valid.likes.num_viewers)
    )
    fit = load_sequence(out, seed=5)["b"]
    asked = {user: number for number, user in enumerate(interactions.valid.likes.user_ids_U.tolist())}
    rows = pl.read_parquet(split / "shard=*" / "part.parquet", hive_partitioning=False).sort("user_id", "position")
    before = [
        (asked[user], movie, rating, time, label != "other")
        for user, movie, rating, time, position, label, _ in rows.iter_rows()
        if user in asked and label in ("graph", "target")
    ]
    got_UM = fit.users(given(before, len(asked))) @ fit.movie_vectors_MD.T + fit.model.bias_M
    column_M = fit.catalogue.columns(interactions.movie_ids_M)
    torch.testing.assert_close(got_UM[:, torch.from_numpy(column_M)], want_UM, rtol=1e-5, atol=1e-5)


def test_films_that_the_fit_does_not_know_are_passed_over(trained):
    fit = load_sequence(trained[1], seed=5, fits=("b",))["b"]
    known = given([(0, FIRST_MOVIE, 5.0, 3, True), (0, FIRST_MOVIE + 1, 4.0, 9, True)], 1)
    more = [(0, FIRST_MOVIE, 5.0, 3, True), (0, 9999, 5.0, 4, True), (0, FIRST_MOVIE + 1, 4.0, 9, True)]
    users_UD = fit.users(given([*more, (1, 9999, 5.0, 4, True)], 3))
    assert users_UD[0].tolist() == fit.users(known)[0].tolist()
    assert users_UD[1:].tolist() == torch.zeros(2, 16).tolist()


def test_stars_and_times_of_a_fresh_rating_count_at_once(trained):
    fit = load_sequence(trained[1], seed=5, fits=("b",))["b"]
    before = [(0, FIRST_MOVIE, 5.0, 3, True), (0, FIRST_MOVIE + 1, 5.0, 9, True)]
    vectors = [
        fit.users(given([before[0], last], 1))[0]
        for last in (before[1], (0, FIRST_MOVIE + 1, 1.0, 9, False), (0, FIRST_MOVIE + 1, 5.0, 10**6, True))
    ]
    assert not torch.allclose(vectors[0], vectors[1])
    assert not torch.allclose(vectors[0], vectors[2])


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


def test_places_know_when_the_next_event_was_and_valid_when_its_answer_was(tmp_path):
    _, streams = streams_of(tmp_path, ROWS)
    assert streams.valid.asked_U.tolist() == [20]
    assert streams.fits["b"].asked_U is None
    time_BL, length_B = torch.tensor([[5, 6, 7], [3, 9, 9]]), torch.tensor([3, 2])
    assert ask_next(time_BL, length_B, torch.tensor([40, 50])).tolist() == [[6, 7, 40], [9, 50, 50]]


def test_a_request_time_without_times_is_refused():
    with pytest.raises(ValueError, match="request_time = true needs time = true"):
        settings(request_time=True, time=False)


def test_rows_that_must_not_train_change_no_byte_of_fit_a(tmp_path):
    tensors = []
    for shift in (0, 1):
        split, out = tmp_path / f"split{shift}", tmp_path / f"out{shift}"
        plant_split(split, hidden_shift=shift)
        out.mkdir()
        train_sequence(split, out, settings(max_steps=4, eval_every=4), 7)
        tensors.append((out / "fit_a.safetensors").read_bytes())
    assert tensors[0] == tensors[1]


@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize("viewers", [128, 129])
def test_the_number_of_threads_changes_no_bit(viewers, content):
    generator = torch.Generator().manual_seed(6)
    movie_UL = torch.rand(viewers, 800, generator=generator).argsort(dim=1)[:, :50]
    likes = Likes(np.arange(viewers, dtype=np.int32), torch.arange(viewers).repeat_interleave(50), movie_UL.flatten())
    events = Events(
        count_U=torch.full((viewers,), 50),
        movie_E=movie_UL.flatten().int(),
        level_E=torch.randint(1, 6, (viewers * 50,), generator=generator).to(torch.uint8),
        time_E=torch.randint(0, 10**6, (viewers, 50), generator=generator).cumsum(1).flatten(),
        like_E=torch.rand(viewers * 50, generator=generator) < 0.7,
    )
    content_MX = some_content(800, 90) if content else None
    found, threads = [], torch.get_num_threads()
    for num_threads in (1, 2, 4):
        torch.set_num_threads(num_threads)
        config = settings(dim=64, max_length=48, batch_viewers=viewers, sampled_films=100)
        trainer = SequenceTrainer(events, likes, None, model_shape(config, 800, 5), config, 3, content_MX)
        losses = [trainer.step() for _ in range(2)]
        found.append((losses, trainer.export()))
    torch.set_num_threads(threads)
    for many in found[1:]:
        assert found[0][0] == many[0]
        assert all(torch.equal(tensor, many[1][name]) for name, tensor in found[0][1].items())


@pytest.mark.parametrize(
    "changes",
    [
        {"sampled_films": 0},
        {"sampled_films": 20, "temperature": 0.1, "tied": False},
        {"sampled_films": 20, "tied": False, "content": True},
    ],
)
def test_a_training_that_goes_on_from_its_state_makes_the_steps_of_one_that_was_never_stopped(trained, changes):
    fits = [trainer_of(trained[0], batch_viewers=20, **changes) for _ in range(2)]
    (interactions, first), (_, second) = fits
    for _ in range(4):
        first.step()
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    assert [first.step() for _ in range(5)] == [second.step() for _ in range(5)]
    assert judge(first, interactions.valid) == judge(second, interactions.valid)


def test_gradients_of_the_chunks_are_those_of_one_graph(trained):
    _, trainer = trainer_of(trained[0], dropout=0.0, sampled_films=0, other_weight=0.3)
    model, before = trainer._model, {}
    row_BW, length_B = trainer._cut()
    targets, asked_BL = find_targets(trainer._events, row_BW, length_B, 0.3)
    read_C, window = trainer._window(row_BW, length_B)
    films_CD = model.embedding_MD.index_select(0, read_C)
    users_PD = model(films_CD, window)[asked_BL]
    scores_PM = users_PD @ model.targets(model.scored_MD).T + model.bias_M
    scores_PM = scores_PM.index_put((targets.known_user_K, targets.known_movie_K), torch.tensor(-torch.inf))
    loss = (torch.nn.functional.cross_entropy(scores_PM, targets.movie_R, reduction="none") * targets.weight_R).sum()
    loss.backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    got = trainer._step(row_BW, length_B, targets, asked_BL)
    assert float(got.detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, before[name], rtol=1e-3, atol=1e-6)


def test_damaged_files_are_refused_in_one_line(trained, tmp_path):
    out = trained[1]
    for path in out.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    described = json.loads((out / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(described | {"dim": 8}))
    with pytest.raises(InputError, match=r"'embedding_MD' has shape \(60, 16\), by model.json next to it \(60, 8\)"):
        load_sequence(tmp_path, 5)
    for broken in ({}, described | {"ratings": [1.0]}, described | {"heads": "two"}):
        (tmp_path / "model.json").write_text(json.dumps(broken))
        with pytest.raises(InputError, match="must describe the sequence model"):
            load_sequence(tmp_path, 5)
    (tmp_path / "model.json").write_text(json.dumps(described))
    tensors = load_file(out / "fit_a.safetensors")
    tensors.pop("norm.weight")
    save_file(tensors, tmp_path / "fit_a.safetensors")
    with pytest.raises(InputError, match=r"no tensor 'norm\.weight'"):
        load_sequence(tmp_path, 5)


def test_a_user_with_one_like_trains_nothing_and_breaks_nothing(tmp_path):
    split = tmp_path / "split"
    streams_of(split, [ROWS[11], ROWS[9]])
    assert trainer_of(split)[1].step() == 0.0
