"""A real vLLM, where one is: a Llama of two layers with made-up weights, through what a replica does with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.serving.formats import tell
from penstock.serving.runtimes.spec import Format, Model, Options
from tests.serving.runtimes.worlds import World, running

ARGUMENTS = ("--load-format", "dummy", "--enforce-eager", "--dtype", "float32", "--max-model-len", "256")


def _tokenizer() -> dict[str, Any]:
    """A token for each byte, as GPT-2's byte-level tokenizers write bytes: printable ones as they are, the others above 255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in plain] + [chr(256 + at) for at in range(256 - len(plain))]
    special = ["<pad>", "<s>", "</s>"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": at, "content": word, **flags} for at, word in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "merges": [],
            "vocab": {word: at for at, word in enumerate([*special, *letters])},
        },
    }  # fmt: skip


def tiny(folder: Path) -> Model:
    """A folder as Hugging Face lays it out; vLLM makes up the weights, so that the file holds none."""
    path = folder / "tiny"
    path.mkdir()
    (path / "tokenizer.json").write_text(json.dumps(_tokenizer()))
    words = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
    }
    (path / "tokenizer_config.json").write_text(json.dumps(words))
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 4, "vocab_size": 259, "max_position_embeddings": 512, "rms_norm_eps": 1e-5}
    kind = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }
    (path / "config.json").write_text(json.dumps({**kind, **sizes, **more, "bos_token_id": 1, "eos_token_id": 2}))
    (path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert tell(str(path)).format is Format.HUGGING_FACE
    return Model("tiny", 1, str(path), Format.HUGGING_FACE)


@pytest.mark.soak
@pytest.mark.needs("vllm")
def test_a_real_vllm_is_started_warmed_read_and_ended(tmp_path: Path) -> None:
    world = World("vllm", tiny, lambda _: Options(args=ARGUMENTS, env={"VLLM_CPU_KVCACHE_SPACE": "1"}), None)
    with running(world, tmp_path) as started:
        started.wait_ready()
        first = world.runtime.warming(started.model, {})
        assert first is not None
        status, body = started.ask(first)
        assert status == 200, body
        assert json.loads(body)["usage"]["completion_tokens"] == 1
        page = world.runtime.metrics()
        assert page is not None
        load = world.runtime.load(started.ask(page)[1].decode())
        assert load.running == 0 and load.waiting == 0
        assert load.compute_s is not None and load.compute_s > 0
        assert load.memory_used is not None
        assert started.stop() == 0
