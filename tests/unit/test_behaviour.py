"""Behaviour tokens: where they stand, what embedding they get, and the one space of the film vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from chat_tokenizers import like
from prompt_frames import build, movies, plain_titles
from scipy.linalg import orthogonal_procrustes
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from tests.film_vectors import write_lightgcn
from tripletune.behaviour import space
from tripletune.behaviour.embedding import FilmEmbedding, attach_films, with_unknown
from tripletune.behaviour.space import align, load_vectors, read_vectors, save_vectors, vectors_for
from tripletune.behaviour.tables import read_film_tables, write_film_tables
from tripletune.behaviour.tokens import FIRST_FILM, UNKNOWN, BehaviourTokens
from tripletune.contract import BehaviourSpace
from tripletune.errors import ContractError, InputError, MissingArtifactError, TrainingError
from tripletune.finetune.curriculum import Curriculum
from tripletune.finetune.length_batches import LengthBatches
from tripletune.prompts.sanitise import display_titles
from tripletune.stable_hash import mix

COLUMNS = ("liked", "disliked", "candidates")
FILMS = 80
WIDTH = 8


@pytest.fixture(scope="module")
def examples() -> pl.DataFrame:
    return build("compact").head(12)


def rows_of(examples: pl.DataFrame) -> dict[str, list[Any]]:
    return examples.select("example_id", "prompt", *COLUMNS).to_dict(as_series=False)


@pytest.mark.parametrize("model", ["llama", "qwen", "gemma", "smollm"])
def test_each_films_token_follows_its_title_and_the_rest_is_the_plain_prompt(examples, model):
    tokenizer = like(model)
    known = list(range(1, 2000, 2))  # every second film has a vector
    titles = dict(display_titles(movies(plain_titles())).iter_rows())
    for row, ids in zip(rows_of_each(examples), written(tokenizer, known, examples), strict=True):
        films = [film for column in COLUMNS for film in row[column]]
        places = [place for place, token in enumerate(ids) if token >= FIRST_FILM]
        assert len(places) == len(films)
        start = 0
        for place, film in zip(places, films, strict=True):
            wanted = 5 + known.index(film) if film % 2 else UNKNOWN
            assert ids[place] == FIRST_FILM + wanted
            assert tokenizer.decode(ids[start:place]).endswith(titles[film])
            start = place + 1
        text = tokenizer.decode([token for token in ids if token < FIRST_FILM])
        plain = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        assert text == tokenizer.decode(list(plain))


def rows_of_each(examples: pl.DataFrame) -> list[dict[str, Any]]:
    return list(examples.iter_rows(named=True))


def written(tokenizer: Any, known: list[int], examples: pl.DataFrame) -> list[list[int]]:
    return BehaviourTokens(tokenizer, known, 5, COLUMNS, "the model").ids(rows_of(examples))


def test_the_tokenizer_itself_is_left_as_it_was(examples):
    tokenizer = like("llama")
    before = (len(tokenizer), tokenizer.encode("<|film|>"))
    written(tokenizer, [1], examples)
    assert (len(tokenizer), tokenizer.encode("<|film|>")) == before


@pytest.mark.parametrize("template", ["letters", "hints-first"])
def test_a_prompt_whose_lines_are_not_its_films_is_refused_by_name(template):
    examples = build(template).head(3)
    with pytest.raises(TrainingError, match=rf"{examples['example_id'][0]} has \d+ lines of data, and its columns"):
        BehaviourTokens(like("llama"), [1], 1, COLUMNS, "the model").ids(rows_of(examples))


def test_vectors_turned_and_mirrored_come_back_and_the_map_is_that_of_scipy(tmp_path):
    write_lightgcn(tmp_path, fits={"a": 0, "b": 0}, num_films=FILMS, width=WIDTH, noise={"b": 0.1}, turned={"b": 3})
    first, second = (read_vectors(tmp_path, "lightgcn", fit) for fit in "ab")
    aligned = align(second, first)
    assert aligned.vectors.space == first.space != second.space
    ours, theirs = second.vectors_MD.double().numpy(), first.vectors_MD.double().numpy()
    wanted = ours @ orthogonal_procrustes(ours, theirs)[0]
    np.testing.assert_allclose(aligned.vectors.vectors_MD.numpy(), wanted, atol=1e-6)
    assert aligned.cosine == pytest.approx((wanted * theirs).sum(axis=1).mean())
    assert aligned.cosine > 0.9
    assert abs(float((second.vectors_MD * first.vectors_MD).sum(dim=1).mean())) < 0.4
    assert align(first, first).cosine == 1.0


def test_films_that_only_one_side_has_are_turned_as_well(tmp_path):
    write_lightgcn(tmp_path / "whole", fits={"b": 0}, num_films=FILMS, width=WIDTH)
    write_lightgcn(tmp_path / "turned", fits={"b": 0}, num_films=FILMS, width=WIDTH, turned={"b": 1})
    whole = read_vectors(tmp_path / "whole", "lightgcn", "b")
    kept = np.arange(FILMS) % 3 > 0
    part = space.FilmVectors(whole.movie_ids_M[kept], whole.vectors_MD[torch.from_numpy(kept)], "part")
    aligned = align(read_vectors(tmp_path / "turned", "lightgcn", "b"), part)
    assert aligned.shared == kept.sum()
    torch.testing.assert_close(aligned.vectors.vectors_MD, whole.vectors_MD, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_films": 3000, "fits": {"b": 9}}, r"after the best map the mean cosine of 3000 shared films is 0\.\d+"),
        ({"num_films": 3000, "width": 12}, r"have width 12, and the adapter's .* of width 8"),
        ({"num_films": 5}, r"^5 films are in both .* fewer than the 8"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(tmp_path, changes, message):
    same = {"fits": {"b": 0}, "num_films": 3000, "width": WIDTH}
    write_lightgcn(tmp_path / "ours", **same)
    write_lightgcn(tmp_path / "theirs", **(same | changes))
    reference, others = (read_vectors(tmp_path / name, "lightgcn", "b") for name in ("ours", "theirs"))
    with pytest.raises(ContractError, match=message):
        align(others, reference)


def test_an_adapters_vectors_are_kept_and_checked(tmp_path):
    write_lightgcn(tmp_path / "model", fits={"a": 0, "b": 0}, num_films=FILMS, width=WIDTH, turned={"b": 2})
    first = read_vectors(tmp_path / "model", "lightgcn", "a")
    stated = BehaviourSpace(source="lightgcn", space=first.space, columns=COLUMNS)
    with pytest.raises(MissingArtifactError, match=r"behaviour_space\.safetensors is missing; produce it with"):
        vectors_for(tmp_path, stated, {"lightgcn": tmp_path / "model"}.__getitem__)
    save_vectors(tmp_path / space.SPACE, first)
    again = load_vectors(tmp_path / space.SPACE)
    assert again.space == first.space
    found = vectors_for(tmp_path, stated, {"lightgcn": tmp_path / "model"}.__getitem__)
    torch.testing.assert_close(found.vectors_MD, first.vectors_MD, atol=1e-5, rtol=0)
    save_vectors(tmp_path / space.SPACE, read_vectors(tmp_path / "model", "lightgcn", "b"))
    with pytest.raises(ContractError, match=rf"trained in {first.space[:12]}; turn them into it first"):
        vectors_for(tmp_path, stated, {"lightgcn": tmp_path / "model"}.__getitem__)
    (tmp_path / space.SPACE).write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        load_vectors(tmp_path / space.SPACE)


def test_a_trainings_tables_hold_both_fits_one_after_the_other(tmp_path, examples):
    write_lightgcn(tmp_path, fits={"a": 0, "b": 1}, num_films=FILMS, width=WIDTH)
    first, second = (read_vectors(tmp_path, "lightgcn", fit) for fit in "ab")
    write_film_tables(tmp_path / "films", first, second)
    tables = read_film_tables(tmp_path / "films")
    assert not tables.vectors_RD[UNKNOWN].any()
    for purpose, vectors in (("train", first), ("valid", second)):
        tokens = tables.tokens(purpose, like("llama"), COLUMNS, "the model").ids(rows_of(examples))[0]
        films = [film for column in COLUMNS for film in examples[column][0]]
        found = [token - FIRST_FILM for token in tokens if token >= FIRST_FILM]
        row_of = {film: row for row, film in enumerate(vectors.movie_ids_M.tolist())}
        for film, row in zip(films, found, strict=True):
            wanted = vectors.vectors_MD[row_of[film]] if film in row_of else torch.zeros(WIDTH)
            assert torch.equal(tables.vectors_RD[row], wanted)


def tiny_model() -> LlamaForCausalLM:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, tie_word_embeddings=True, **shape))


def film_table() -> torch.Tensor:
    return with_unknown(functional.normalize(torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(1)), dim=1))


def test_words_keep_their_embeddings_and_films_get_the_projection_of_their_vectors():
    model, table = tiny_model(), film_table()
    words = model.get_input_embeddings()
    attach_films(model, table, seed=4)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, FilmEmbedding)
    ids = torch.tensor([[3, FIRST_FILM + 2, 7], [FIRST_FILM, FIRST_FILM + 9, 49]])
    found = embedding(ids)
    torch.testing.assert_close(found[0, 0], words.weight[3])
    torch.testing.assert_close(found[1, 2], words.weight[49])
    state = embedding.film_projector.state_dict()
    inner = functional.gelu(table[2] @ state["inner_HD"].T + state["inner_bias_H"])
    torch.testing.assert_close(found[0, 1], inner @ state["outer_HH"].T + state["outer_bias_H"])
    assert not found[1, 0].any()  # a film without a vector, before the biases are trained
    projected = embedding.film_projector(table[1:]).detach()
    assert float(projected.std()) == pytest.approx(float(words.weight.detach().std()), rel=1e-4)
    assert model.lm_head.weight is words.weight
    assert not any("vectors" in name for name in model.state_dict())


def test_the_projector_has_a_gradient_in_every_batch_and_the_same_start_for_the_same_seed():
    model = tiny_model()
    attach_films(model, film_table(), seed=4)
    model(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()
    projector = model.get_input_embeddings().film_projector
    assert all(weight.grad is not None and not weight.grad.any() for weight in projector.parameters())
    again, other = tiny_model(), tiny_model()
    attach_films(again, film_table(), seed=4)
    attach_films(other, film_table(), seed=5)
    assert torch.equal(again.get_input_embeddings().film_projector.inner_HD, projector.inner_HD)
    assert not torch.equal(other.get_input_embeddings().film_projector.inner_HD, projector.inner_HD)


def drawn(rising: float, epochs: float = 2, number: int = 4000) -> np.ndarray:
    """Whether each example of an order had behaviour tokens, all epochs one after the other."""
    lengths = [10 + int(length) for length in mix(np.arange(number), 3) % np.uint64(50)]
    curriculum = Curriculum(LengthBatches(lengths, 8, 1), 8, epochs, rising, 1)
    plain = LengthBatches(lengths, 8, 1)
    forms = []
    for epoch in range(int(epochs)):
        curriculum.set_epoch(epoch)
        plain.set_epoch(epoch)
        order = np.array(list(curriculum))
        assert (order % number).tolist() == list(plain)
        forms.append(order >= number)
    return np.concatenate(forms)


def test_the_share_with_behaviour_tokens_rises_evenly_to_all():
    whole = drawn(1.0)
    for part, chunk in enumerate(np.array_split(whole, 8)):
        assert chunk.mean() == pytest.approx((part + 0.5) / 8, abs=0.05)
    assert not whole[:8].any()
    half = drawn(0.5)
    assert half[: len(half) // 4].mean() == pytest.approx(0.25, abs=0.04)
    assert half[len(half) // 2 :].all()
    assert drawn(0.0).all()
