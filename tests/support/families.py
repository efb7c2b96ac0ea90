"""Small models of mlx-lm's families with random weights: one dictionary of sizes serves them all."""

import importlib

import mlx.core as mx

DIMS, LAYERS, VOCABULARY = 32, 3, 90

# Each family's ModelArgs takes from this what it knows.
SIZES = {
    "hidden_size": DIMS,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCABULARY,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}

# family -> (module of mlx_lm.models, what its ModelArgs needs besides SIZES)
FAMILIES = {
    "llama": ("llama", {}),
    "llama with a sliding window": (
        "llama",
        {"sliding_window": 4, "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
    ),
    "mistral": ("llama", {"model_type": "mistral"}),
    "ministral3": (
        "ministral3",
        {
            "rope_parameters": {
                "rope_theta": 10000.0,
                "llama_4_scaling_beta": 0.1,
                "original_max_position_embeddings": 128,
            },
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "sliding_window": 4,
        },
    ),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "num_experts": 4, "decoder_sparse_step": 1, "mlp_only_layers": []}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmoe": ("olmoe", {**EXPERTS, "num_experts": 4}),
    "gpt_oss": (
        "gpt_oss",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 2.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {
            **EXPERTS,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "kv_lora_rank": 8,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "first_k_dense_replace": 1,
        },
    ),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3_text", {"sliding_window": 4, "sliding_window_pattern": 2}),
    "phi": ("phi", {"num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    "phi3": ("phi3", {}),
    "smollm3": ("smollm3", {}),
    "gpt2": ("gpt2", {"n_ctx": 128, "n_positions": 128, "n_embd": DIMS, "n_head": 4, "n_layer": LAYERS}),
    "gpt_neox": ("gpt_neox", {"rotary_emb_base": 10000, "rotary_pct": 0.25}),
    "cohere2": ("cohere2", {"sliding_window": 4, "sliding_window_pattern": 2}),
    "starcoder2": ("starcoder2", {}),
    "mamba": (
        "mamba",
        {"state_size": 4, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True, "time_step_rank": 4},
    ),
    "lfm2": (
        "lfm2",
        {
            "norm_eps": 1e-5,
            "conv_bias": False,
            "conv_L_cache": 3,
            "block_dim": DIMS,
            "block_multiple_of": 16,
            "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": True,
            "block_ff_dim": 64,
            "full_attn_idxs": [1],
        },
    ),
}
for _name, _settings in FAMILIES.values():
    _settings.setdefault("model_type", _name)
FAMILIES["gpt2"][1].update(layer_norm_epsilon=1e-5)
FAMILIES["gpt_neox"][1].update(layer_norm_eps=1e-5)


def build(family: str, seed: int = 0):
    """A model of ``family`` in float32."""
    module, settings = FAMILIES[family]
    arch = importlib.import_module(f"mlx_lm.models.{module}")
    mx.random.seed(seed)
    model = arch.Model(arch.ModelArgs.from_dict({**SIZES, **settings}))
    model.eval()
    mx.eval(model.parameters())
    return model


class Words:
    """A tokenizer for these models: a number for each word."""

    def encode(self, text):
        return [sum(map(ord, word)) % 90 for word in text.split()]
