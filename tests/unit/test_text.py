"""Film texts: what is written of a film, its vector against other code, and the ranking by it."""

from __future__ import annotations

import logging
import string
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.graph_cases import FIRST_MOVIE, NUM_MOVIES, plant_knowledge, plant_split
from tripletune.config import RetrieveConfig, TextConfig
from tripletune.config.presets import parse_config
from tripletune.errors import ConfigError, InputError
from tripletune.models.serving.catalogue import Catalogue, Likes, RatingEvents
from tripletune.models.serving.retriever import Histories, Serving
from tripletune.models.serving.topk import Ragged
from tripletune.models.text.directions import centre
from tripletune.models.text.embed import load_embedder
from tripletune.models.text.fit import embed_films
from tripletune.models.text.serve import RETRIEVER
from tripletune.models.text.texts import film_texts
from tripletune.pipeline.resolve import resolve
from tripletune.store.catalogue import write_catalogue

TEXTS = ["Heat (1995). Action, Crime. Michael Mann", "Toy Story (1995)", "Amélie", "映画"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    plant_split(folder / "split")
    plant_knowledge(folder / "knowledge")
    (folder / "out").mkdir()
    # the last film is in the catalogue and not in the graph
    write_catalogue(folder / "split", range(FIRST_MOVIE, FIRST_MOVIE + NUM_MOVIES + 1))
    embed_films(folder / "knowledge", folder / "split", folder / "out", TextConfig(relations=("director", "genre")))
    return folder


def test_a_text_is_the_title_and_what_the_graph_says(world):
    texts = film_texts(world / "knowledge", ("director", "genre"))
    assert texts["movie_id"].to_list() == list(range(FIRST_MOVIE, FIRST_MOVIE + NUM_MOVIES))
    assert texts["text"][0] == "Film 0"  # it has no triple
    assert texts["text"][4] == "Film 4. Director 4. Drama"
    assert film_texts(world / "knowledge", ("genre", "decade"))["text"][4] == "Film 4. Drama. 1980s"
    with pytest.raises(ConfigError, match=r"text\.relations names 'mood', which the graph lacks; it has genre"):
        film_texts(world / "knowledge", ("genre", "mood"))
    with pytest.raises(InputError, match="run knowledge"):
        film_texts(world / "split", ("genre",))


def test_static_vectors_are_those_of_the_package_itself():
    handlers = list(logging.getLogger().handlers)
    import wordllama

    logging.getLogger().handlers = handlers  # the import adds one to the root
    theirs = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    np.testing.assert_allclose(load_embedder("wordllama")(TEXTS).numpy(), theirs.embed(TEXTS), rtol=1e-4, atol=1e-6)


def test_a_text_s_vector_depends_on_no_other_text():
    embed = load_embedder("wordllama")
    alone_NX = torch.cat([embed([text]) for text in TEXTS])
    assert torch.equal(embed(TEXTS), alone_NX)
    assert embed([""]).tolist() == [[0.0] * 256]


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that sentence-transformers saved: a BERT of two narrow layers, and the mean over its tokens."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("sentences")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder / "bert")
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    bert = modules.Transformer(str(folder / "bert"))
    SentenceTransformer(modules=[bert, modules.Pooling(16)], device="cpu").save(str(folder / "model"))
    return folder


def test_a_sentence_transformers_folder_is_the_mean_over_its_transformer(sentence_model):
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(sentence_model / "bert")
    bert = AutoModel.from_pretrained(sentence_model / "bert").eval()
    with torch.no_grad():
        want = [bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0) for text in TEXTS]
    got_NX = load_embedder(str(sentence_model / "model"))(TEXTS)
    torch.testing.assert_close(got_NX, torch.stack(want), rtol=1e-4, atol=1e-5)


def test_a_folder_that_is_no_model_is_one_line(tmp_path, sentence_model):
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(InputError, match="cannot be read by sentence-transformers"):
        load_embedder(str(tmp_path))


def test_vectors_are_directions_from_the_mean():
    vectors_MX = torch.tensor([[2.0, 0.0], [0.0, 5.0], [0.0, 0.0], [1.0, 1.0]])
    unit = np.array([[1, 0], [0, 1], [1 / np.sqrt(2)] * 2])
    want = unit - unit.mean(axis=0)
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(centre(vectors_MX)[[0, 1, 3]].numpy(), want, rtol=1e-6)
    assert centre(vectors_MX)[2].tolist() == [0.0, 0.0]


def histories(likes: list[tuple[int, int, int]], seen: list[tuple[int, int]], num_users: int) -> Histories:
    """Of likes (user, film, age) and rated columns of the catalogue."""
    user_E, movie_E, age_E = (np.array([like[part] for like in likes]) for part in range(3))
    nothing = np.zeros(0)
    return Histories(
        likes=Likes(user_E, movie_E, age_E),
        events=RatingEvents(*(nothing.astype(kind) for kind in (int, int, float, int, bool))),
        seen=Ragged.from_pairs(np.array([u for u, _ in seen]), np.array([c for _, c in seen]), num_users),
        lightgcn_UD=torch.zeros(num_users, 2),
    )


def test_films_rank_by_cosine_with_the_mean_of_the_newest_likes(world):
    ids = np.arange(FIRST_MOVIE, FIRST_MOVIE + NUM_MOVIES + 1)
    catalogue = Catalogue(ids, seed=3)
    serving = Serving(catalogue=catalogue, lightgcn={"a": None, "b": None}, seed=3, settings=RetrieveConfig())
    rankers = RETRIEVER.load(world / "out", serving)
    likes = [(0, FIRST_MOVIE + 7, 2), (0, FIRST_MOVIE + 20, 1), (0, FIRST_MOVIE + 33, 0), (1, 9999, 0)]
    seen = [(0, int(column)) for column in catalogue.columns([FIRST_MOVIE + 7, FIRST_MOVIE + 20, FIRST_MOVIE + 33])]
    top_UK = rankers["b"].top("text", histories(likes, seen, 2), 10)
    text = load_file(world / "out" / "films.safetensors")["text"].double().numpy()
    user = sum(text[movie - FIRST_MOVIE] * 2.0 ** (-age / 3) for user, movie, age in likes if user == 0)
    score = dict(zip(ids.tolist(), text @ user, strict=True))
    for _, column in seen:
        del score[int(catalogue.ids_M[column])]
    want = sorted(score, key=lambda movie: -score[movie])[:10]
    assert catalogue.movie_ids(top_UK[0]).tolist() == want
    assert top_UK[1].tolist() == list(range(10))  # nothing is known of the user: the order of ties


def test_the_stage_s_files(world):
    out = world / "out"
    assert pl.read_parquet(out / "trained_on.parquet").is_empty()
    texts = pl.read_parquet(out / "texts.parquet")
    assert texts["text"][NUM_MOVIES] == ""
    assert load_file(out / "films.safetensors")["text"][NUM_MOVIES].tolist() == [0.0] * 256


def test_damaged_files_are_refused_in_one_line(world, tmp_path):
    ids = np.arange(FIRST_MOVIE, FIRST_MOVIE + NUM_MOVIES)  # one film fewer
    serving = Serving(catalogue=Catalogue(ids, 0), lightgcn={"b": None}, seed=0, settings=RetrieveConfig())
    with pytest.raises(InputError, match="has other films than the other models"):
        RETRIEVER.load(world / "out", serving)
    for name in ("movies.parquet", "films.safetensors"):
        (tmp_path / name).write_bytes((world / "out" / name).read_bytes())
    save_file({"text": torch.full((NUM_MOVIES + 1, 2), torch.nan)}, tmp_path / "films.safetensors")
    with pytest.raises(InputError, match="NaN"):
        RETRIEVER.load(tmp_path, serving)


def test_the_content_of_the_model_s_folder_is_part_of_the_fingerprint(tmp_path):
    (tmp_path / "modules.json").write_text("[]")

    def fingerprint() -> str:
        text = {"retrieve": {"retriever": "text"}, "text": {"model": str(tmp_path)}}
        return resolve(parse_config({"dataset": "toy"} | text, "test"), tmp_path / "artifacts").fingerprints["text"]

    before = fingerprint()
    assert fingerprint() == before
    (tmp_path / "modules.json").write_text("[1]")
    assert fingerprint() != before
