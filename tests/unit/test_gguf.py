"""GGUF files: a whole one is converted, all others are one ModelError that leaves nothing in the cache."""

import gguf
import numpy as np
import pytest
import torch

from minillm.common.errors import ModelError
from minillm.models import Checkpoint

WIDTH, FFN, WORDS = 16, 24, ["</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]


def write(file, architecture="llama", leave_out=()):
    """A Llama of one layer with its tokenizer."""
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(WORDS)
    writer.add_token_scores([0.0] * len(WORDS))
    writer.add_token_types([3, 2] + [1] * (len(WORDS) - 2))
    writer.add_token_merges([])
    writer.add_eos_token_id(0)
    square = {name: (WIDTH, WIDTH) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
    ffn = {"ffn_gate": (FFN, WIDTH), "ffn_up": (FFN, WIDTH), "ffn_down": (WIDTH, FFN)}
    norms = {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
    shapes = {f"blk.0.{name}": shape for name, shape in (square | ffn | norms).items()}
    shapes |= {"token_embd": (len(WORDS), WIDTH), "output_norm": (WIDTH,)}
    draw = np.random.default_rng(0)
    for name, shape in shapes.items():
        if name not in leave_out:
            writer.add_tensor(f"{name}.weight", draw.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def refused(file, cache):
    with pytest.raises(ModelError) as caught:
        Checkpoint(str(file)).load()
    assert str(caught.value).startswith(f"{file}: ") and "wanted a whole file of an architecture" in str(caught.value)
    assert not list(cache.rglob("*"))
    return str(caught.value)


def test_a_whole_file_is_converted_once(tmp_path, cache):
    file = write(tmp_path / "tiny.gguf")
    network, tokenizer = Checkpoint(str(file)).load()
    assert network.config.num_hidden_layers == 1 and network(torch.tensor([[2, 3]])).logits.isfinite().all()
    assert tokenizer.eos_token == "</s>"
    (made,) = (cache / "gguf").iterdir()
    before = made.stat().st_mtime_ns
    Checkpoint(str(file)).load()
    assert made.stat().st_mtime_ns == before and len(list((cache / "gguf").iterdir())) == 1


@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_a_cut_file(tmp_path, cache, share):
    whole = write(tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: int(len(whole) * share)])
    refused(tmp_path / "cut.gguf", cache)


@pytest.mark.parametrize("content", [b"<html>404</html>", b"", b"GGUF", b"GGUF" + b"\xff" * 200])
def test_a_file_of_another_kind(tmp_path, cache, content):
    (tmp_path / "other.gguf").write_bytes(content)
    assert "cannot be converted" in refused(tmp_path / "other.gguf", cache)


def test_an_architecture_that_transformers_does_not_convert(tmp_path, cache):
    assert "architecture plamo3 is not supported" in refused(write(tmp_path / "odd.gguf", "plamo3"), cache)


def test_weights_that_are_not_in_the_file_are_not_made_up(tmp_path, cache):
    said = refused(write(tmp_path / "few.gguf", leave_out=("blk.0.ffn_up", "output_norm")), cache)
    assert "2 weights are missing, model.layers.0.mlp.up_proj.weight" in said


def test_a_dotted_package_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "imported_by_name.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("imported_by_name.sub", "", ".", "a-b"):
        with pytest.raises(ModelError, match="wanted the name of a package"):
            Checkpoint(f"package:{name}").load()
