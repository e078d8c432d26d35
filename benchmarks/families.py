"""Every causal language model of the installed Transformers that can be built small: how descant drives it, and whether
what it scores and generates then is right. ``make families`` writes the table of docs/models.md.

python benchmarks/families.py               all of them, in a process each (about twenty minutes on two cores)
python benchmarks/families.py qwen3 mamba   these, as JSON on the standard output
"""

import collections
import copy
import json
import os
import signal
import subprocess
import sys
import types
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
SECONDS, PROCESSES, PART = 240, 2, 12
MAX_PARAMETERS = 20_000_000
VOCABULARY, CONTEXT, WINDOW = 300, 256, 16
NUM_NEW = 16
PROMPT_LENGTHS = (1, 30, 3, 12, 50, 12, 7, 20, 41)
STOP_IDS = frozenset(range(0, VOCABULARY, 12))  # so that rows leave at different times
CACHES = {"replaced rows": "rows are replaced", "its own": "its own cache", "none": "no cache"}
TOLERANCE = 2e-3  # of a log-probability; what is wrong differs by tenths

# What configurations call their sizes, and small ones.
SIZES = {
    ("vocab_size",): VOCABULARY,
    ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embed_dim", "embedding_size", "encoder_hidden_dim"): 64,
    ("d_embed", "lru_width", "hidden_size_per_layer_input"): 64,
    ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size", "d_ff", "dff"): 96,
    ("n_inner", "d_inner", "feed_forward_size", "dim_ff", "mlp_hidden_size", "shared_intermediate_size"): 96,
    ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"): 32,
    ("moe_shared_expert_intermediate_size", "intermediate_size_mlp"): 32,
    ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers", "num_blocks"): 4,
    ("num_decoder_layers", "num_encoder_layers"): 4,
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"): 4,
    ("encoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads"): 4,
    ("num_key_value_heads", "multi_query_group_num", "n_kv_heads", "num_kv_heads"): 2,
    ("head_dim", "kv_channels", "attention_head_size", "attention_head_dim", "global_head_dim", "d_kv", "dim_head"): 16,
    ("v_head_dim", "qk_nope_head_dim", "swa_head_dim", "swa_v_head_dim"): 16,
    ("qk_rope_head_dim", "index_head_dim", "rotary_dim"): 8,
    ("qk_head_dim",): 24,
    ("q_lora_rank", "kv_lora_rank", "o_lora_rank"): 16,
    ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"): 4,
    ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"): 2,
    ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"): 1,
    ("n_group", "topk_group", "n_groups", "num_expert_group"): 1,
    ("first_k_dense_replace",): 1,
    ("max_position_embeddings", "n_positions", "max_seq_len", "context_length", "seq_length", "n_ctx"): CONTEXT,
    ("sliding_window", "attention_window_size", "attention_chunk_size", "window_size", "sliding_window_size"): WINDOW,
    ("local_attention",): WINDOW,
    ("linear_num_key_heads", "linear_num_value_heads"): 2,
    ("linear_key_head_dim", "linear_value_head_dim"): 16,
    ("mamba_n_heads", "mamba_num_heads"): 8,
    ("mamba_d_head", "mamba_head_dim", "mamba_headdim"): 16,
    ("mamba_d_state", "state_size", "ssm_state_size", "mamba_dt_rank", "time_step_rank"): 8,
    ("mamba_d_ssm",): 128,
    ("mamba_n_groups", "mamba_ngroups"): 1,
    ("mamba_chunk_size", "chunk_size"): 8,
    ("vocab_size_per_layer_input",): VOCABULARY,
    ("attention_hidden_size", "word_embed_proj_dim"): 64,
    ("mamba_expand", "expand"): 2,
}
SMALL = {name: size for names, size in SIZES.items() for name in names}
SPECIAL = {"bos_token_id": 0, "decoder_start_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
KINDS_OF_LAYERS = ("layer_types", "mlp_layer_types", "layers_block_type")
MLA = {
    "head_dim": 8,
    "qk_head_dim": 24,
    "num_key_value_heads": 4,
}  # multi-head latent attention: its head_dim is that of the rotary part
ROPE = {"rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE = {
    **ROPE,
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0],
}
OTHERWISE = {  # where the small sizes above are not enough
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "blenderbot": {"encoder_layers": 4},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "deepseek_v2": {"n_routed_experts": 4, "num_experts_per_tok": 2, "topk_method": "greedy"},
    "dots3_note_text": {"per_layer_config": {}},
    "reformer": {"axial_pos_embds_dim": [32, 32], "axial_pos_shape": [16, 16]},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "bamba": {"attn_layer_indices": [1, 3]},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16},
    "gemma3n_text": {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 16, "expand": 2, "n_groups": 1},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16},
    "xlnet": {"d_head": 16},
    "xlstm": {"embedding_dim": 64, "num_heads": 4},
    "zamba": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "n_mamba_heads": 2,
        "mamba_dt_rank": 8,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
    },
    "zamba2": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "mamba_headdim": 16,
        "n_mamba_heads": 8,
        "hybrid_layer_ids": [1, 3],
    },
}
VARIANTS = {  # settings of a family under which it computes otherwise
    "bert, without is_decoder": ("bert", {"is_decoder": False}),
    "falcon, alibi": ("falcon", {"alibi": True, "new_decoder_architecture": False}),
    "llama, dynamic rope": ("llama", {"rope_parameters": {**ROPE, "rope_type": "dynamic"}}),
    "llama, yarn": ("llama", {"rope_parameters": {**ROPE, "rope_type": "yarn"}}),
    "phi3, longrope": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32}),
    "phimoe, longrope": (
        "phimoe",
        {
            "rope_parameters": {**LONGROPE, "short_mscale": 1.2, "long_mscale": 1.4},
            "original_max_position_embeddings": 32,
        },
    ),
}


def shrunk(settings):
    """What of the settings of a configuration has to be given for it to be small."""
    small = {}
    for name, value in settings.items():
        if isinstance(value, dict) and name.endswith("_config") and value:
            small[name] = shrunk(value)
        elif isinstance(value, int) and not isinstance(value, bool) and name in {**SMALL, **SPECIAL}:
            small[name] = min(value, SMALL[name]) if name in SMALL else SPECIAL[name]
    num_layers = next((small[name] for name in ("num_hidden_layers", "num_layers", "n_layer") if name in small), 4)
    for name in KINDS_OF_LAYERS:
        kinds = list(dict.fromkeys(settings.get(name) or ()))
        if len(kinds) > 1:
            small[name] = [kinds[layer % len(kinds)] for layer in range(num_layers)]
    if settings.get("is_decoder") is False:
        small["is_decoder"] = True
    if "qk_rope_head_dim" in settings:
        small |= {name: value for name, value in MLA.items() if name in settings}
    return small


def configuration(name):
    """A small configuration of a family or a variant of it."""
    from transformers import CONFIG_MAPPING

    family, settings = VARIANTS.get(name, (name, {}))
    kind = CONFIG_MAPPING[family]
    return kind(**copy.deepcopy(shrunk(kind().to_dict()) | OTHERWISE.get(family, {}) | settings))


def build(family):
    """A small model of a family, whose weights make the context count."""
    import torch
    from transformers import AutoModelForCausalLM

    config = configuration(family)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(copy.deepcopy(config)).parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"it still has {size / 1e6:,.0f}M parameters")
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomize(model)
    return model


def randomize(model):
    """Weights of the size that training makes: nothing is zero or one throughout."""
    import torch

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(0, 1.5 / module.weight.shape[1] ** 0.5)
            elif isinstance(module, torch.nn.Embedding):
                module.weight.normal_(0, 1)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)


def check(family):
    """What descant does with a family, and what is wrong with it: a row of the table."""
    try:
        model = build(family)
    except Exception as error:
        return {"family": family, "outcome": "not built", "why": first_line(error)}
    return {"family": family, "class": type(model).__name__, **checked(model)}


def checked(model):
    """The same of a model."""
    import torch

    from descant.engine.hf import HFEngine
    from descant.errors import ModelLoadError

    rngs = torch.get_rng_state()
    try:
        engine = HFEngine(
            model,
            types.SimpleNamespace(decode=str),
            stop_ids=STOP_IDS,
            max_batch_tokens=256,
            max_cached_tokens=200,
            trainable=True,
        )
    except ModelLoadError as error:
        return {"outcome": "refused", "why": str(error)}
    row = {"way": [engine.driving.scoring, engine.driving.cache, engine.driving.generation]}
    problems = [] if torch.equal(rngs, torch.get_rng_state()) else ["the probe drew random numbers"]
    try:
        problems += problems_of(engine, model)
    except Exception as error:
        problems.append(first_line(error))
    if not problems and (problem := training_problem(engine)):
        return {**row, "outcome": "not trained", "why": problem}
    return {**row, "outcome": "wrong" if problems else "right", "why": "; ".join(problems)}


def problems_of(engine, model):
    """What differs from plain forward passes, in words."""
    import torch

    from descant.engine import jobs

    generator = torch.Generator().manual_seed(1)
    prompts = [tuple(torch.randint(20, 290, (n,), generator=generator).tolist()) for n in PROMPT_LENGTHS]
    flags = {"output_router_logits": True, "output_hidden_states": True, "return_dict": False}
    problems = []
    generated = engine.run(
        jobs.Generate(
            tuple(jobs.GenerationRequest(p, i) for i, p in enumerate(prompts)), jobs.Sampling(max_gen_len=NUM_NEW)
        ),
        lambda num_done=0: None,
    )
    sequences = []
    for prompt, result in zip(prompts, generated, strict=True):
        if isinstance(result, Exception):
            return [first_line(result)]
        sequence = (*prompt, *result.token_ids)
        sequences.append(jobs.WeightedSequence(sequence, (0.0,) * len(prompt) + (1.0,) * len(result.token_ids)))
        expected = step_logprobs(model, sequence, len(prompt))
        difference = largest_difference(expected, result.logprobs)
        if not difference < TOLERANCE:
            problems.append(f"generated for {len(prompt)} tokens: log-probabilities differ by {difference:.2g}")
    for name, value in flags.items():
        if hasattr(model.config, name):
            setattr(model.config, name, value)
    scored = engine.run(jobs.Logprobs(tuple(sequences)), lambda num_done=0: None)
    again = engine.run(
        jobs.Generate((jobs.GenerationRequest(prompts[1], 1),), jobs.Sampling(max_gen_len=4)), lambda num_done=0: None
    )
    for name in flags:
        if hasattr(model.config, name):
            setattr(model.config, name, name == "return_dict")
    if isinstance(again[0], Exception):
        problems.append(f"with flags: {first_line(again[0])}")
    for sequence, logprobs in zip(sequences, scored, strict=True):
        if isinstance(logprobs, Exception):
            problems.append(first_line(logprobs))
            continue
        start = sequence.weights.index(1.0)
        difference = largest_difference(plain_logprobs(model, sequence.token_ids)[start - 1 :], logprobs)
        if not difference < TOLERANCE:
            problems.append(f"scored {len(sequence.token_ids)} tokens: differ by {difference:.2g}")
    return problems


def training_problem(engine):
    """Why a step of training fails, in words; empty if it does not."""
    from descant.engine import jobs

    sequences = tuple(jobs.WeightedSequence((*range(20, 20 + n),), (1.0,) * n) for n in (9, 30, 50))
    try:
        refused = [error for error in engine.run(jobs.Accumulate(sequences, "language_modelling", 0), bool) if error]
        metrics = engine.run(jobs.OptimStep(1e-3, 0.0, 1.0, skip_nan_gradients=False), bool)
    except Exception as error:
        return first_line(error)
    return f"{refused or metrics}" if refused or metrics["skipped_update"] else ""


def plain_logprobs(model, sequence):
    """The log-probabilities of all tokens but the first, by one forward pass."""
    import torch

    logprobs = all_logprobs(model, sequence)[:-1]
    return logprobs.gather(-1, torch.tensor(sequence[1:]).unsqueeze(-1)).squeeze(-1).tolist()


def all_logprobs(model, sequence):
    """Those of every token behind each position."""
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([sequence]), use_cache=False).logits[0].log_softmax(-1)


def step_logprobs(model, sequence, start):
    """The log-probabilities of the tokens from ``start`` on, each by a forward pass on the tokens before it."""
    from descant.engine.driving import length_boundaries

    if not length_boundaries(model.config):
        return plain_logprobs(model, sequence)[start - 1 :]
    return [float(all_logprobs(model, sequence[:end])[-1, sequence[end]]) for end in range(start, len(sequence))]


def largest_difference(expected, found):
    """The largest absolute difference; infinite if lengths differ."""
    if len(expected) != len(found):
        return float("inf")
    return max((abs(a - b) for a, b in zip(expected, found, strict=True)), default=0.0)


def first_line(error):
    """An error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:240]}"


def rows_of(families):
    """Rows of the table, from a process of their own; where that dies or hangs, a row says so and the next is made."""
    rows = []
    while len(rows) < len(families):
        waiting = families[len(rows) :]
        command = [sys.executable, __file__, *waiting]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        rows += [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if len(rows) < len(families):
            how = f"its process ended with {done.returncode} (-14: after {SECONDS} s)"
            rows.append({"family": families[len(rows)], "outcome": "not built", "why": how})
    return rows


def main():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    warnings.simplefilter("ignore")
    families = sys.argv[1:]
    if families:
        for family in families:
            signal.alarm(SECONDS)
            print(json.dumps(check(family)), flush=True)
        return
    families = [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS]
    parts = [families[start : start + PART] for start in range(0, len(families), PART)]
    with ThreadPoolExecutor(PROCESSES) as pool:
        rows = [row for part in pool.map(rows_of, parts) for row in part]
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}")
    print(f"{PAGE}: " + ", ".join(f"{n} {outcome}" for outcome, n in count(rows).most_common()))
    for row in rows:
        if row["outcome"] == "wrong":
            print(f"{row['family']}: {row['why']}")
    sys.exit(any(row["outcome"] == "wrong" for row in rows))


def table(rows):
    """The rows as Markdown: families by how they are driven, then those that are refused or were not built, and why."""
    from importlib.metadata import version

    counts = count(rows)
    lines = [
        f"Transformers {version('transformers')}: {counts['right']} right, {counts['refused']} refused, "
        f"{counts['not trained']} right and not trained, {counts['not built']} not built, {counts['wrong']} wrong.",
        "",
        "| generation | scoring and training | families |",
        "|---|---|---|",
    ]
    by_way = collections.defaultdict(list)
    for row in rows:
        if row["outcome"] == "right":
            by_way[tuple(row["way"])].append(row["family"])
    for (scoring, cache, generation), families in sorted(by_way.items(), key=lambda each: -len(each[1])):
        names = ", ".join(f"`{family}`" for family in families)
        lines.append(f"| {CACHES[cache]}, prompts {generation} | {scoring} | {names} |")
    lines += ["", "| family | | why |", "|---|---|---|"]
    for row in rows:
        if row["outcome"] != "right":
            why = " ".join(row["why"].split()).replace("|", "\\|")
            lines.append(f"| {row['family']} | {row['outcome']} | {why if len(why) <= 200 else why[:199] + '…'} |")
    return "\n".join(lines)


def count(rows):
    """How many rows have each outcome."""
    return collections.Counter(row["outcome"] for row in rows)


if __name__ == "__main__":
    main()
