"""Makes models/: tiny random Hugging Face directories, and what transformers, PEFT and torch.nn compute with them.

For each LLM family: a directory as `save_pretrained` writes it (then changed where older or larger models are stored
in another way), and beside it `<name>.safetensors` and `<name>.json` with inputs and expected outputs. No two dimensions
of a model are equal, so that none can be confused. tests/model/ holds the Rust model to these files.

Usage: python make_model_golden.py   (requirements.txt names the versions)
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, processors
from torch import nn
from torch.nn import functional as F
from transformers import (AutoModelForCausalLM, GenerationConfig, LlamaConfig, PreTrainedTokenizerFast,
                          Qwen2Config, Qwen3Config, WhisperConfig, WhisperForConditionalGeneration, WhisperModel)

torch.set_num_threads(1)
HERE = Path(__file__).parent / "models"

RANK, ALPHA = 3, 5.0
D_ENCODER = 11
MAX_NEW_TOKENS = 12
BEAM = 3
SPECIAL = ["<s>", "</s>", "<unk>", "<|user|>", "<|model|>", "<|end|>", "<en>", "<de>", "<vi>"]
LANGUAGES = {"en": "English", "de": "German", "vi": "Vietnamese"}
TEXTS = ["one two", "acht und drei", "ba"]
FRAMES = [9, 14, 23]
LLM_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ENCODER_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]

# What published templates do: indented blocks, whose blanks vanish only with the trimming that transformers switches on,
# namespaces, reversed loops, Python's string methods, loop controls and extension functions.
CHAT_TEMPLATE = """{{ bos_token if bos_token else '' }}
{%- if tools %}
    {{- tools | tojson }}
{%- endif %}
{%- if messages[0].role == 'system' %}
    {{- raise_exception('no system messages') }}
{%- endif %}
{%- set ns = namespace(last=none) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' and message.content is string %}
        {%- set ns.last = (messages | length - 1) - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{% for message in messages %}
    {%- set content = message['content'].split('<think>')[-1].lstrip('.') | trim %}
    {% if message.role.startswith('user') and loop.index0 == ns.last %}
<|user|>{{ content }}<|end|>
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|model|>
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- 'T' }}
    {%- endif %}
{% endif %}
"""


@dataclass
class Case:
    """One LLM directory and the Speech-LLM built on it."""

    name: str
    config: object
    projector: str
    prompt: str
    template: str
    dtype: torch.dtype = torch.float32
    bos: bool = True
    eos: tuple = (1,)
    chat_template_in_config: bool = False
    old_rope_layout: bool = False
    shards: bool = False


CASES = [
    Case(
        name="llama_tied",
        config=LlamaConfig(
            vocab_size=79, hidden_size=24, intermediate_size=37, num_hidden_layers=2, num_attention_heads=6,
            num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, max_position_embeddings=256,
            rope_parameters={"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 3.0, "original_max_position_embeddings": 32},
            bos_token_id=0, eos_token_id=1),
        projector="conv", prompt="plain", template="<{lang}>Write {language} ({lang}):\n", old_rope_layout=True),
    Case(
        name="llama_sharded",
        config=LlamaConfig(
            vocab_size=83, hidden_size=20, intermediate_size=33, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=1, head_dim=6, attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
            rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}, bos_token_id=0,
            eos_token_id=1),
        projector="stack", prompt="chat", template="Write {language}:\n", chat_template_in_config=True, shards=True),
    Case(
        name="qwen2",
        config=Qwen2Config(
            vocab_size=81, hidden_size=36, intermediate_size=35, num_hidden_layers=2, num_attention_heads=6,
            num_key_value_heads=3, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            bos_token_id=0, eos_token_id=1),
        projector="conv", prompt="chat", template="Write {language}:\n", dtype=torch.bfloat16, bos=False,
        eos=(1, 5, 20, 33), old_rope_layout=True),
    Case(
        name="qwen3",
        config=Qwen3Config(
            vocab_size=77, hidden_size=21, intermediate_size=34, num_hidden_layers=2, num_attention_heads=6,
            num_key_value_heads=2, head_dim=10, attention_bias=True, tie_word_embeddings=True,
            max_position_embeddings=128,
            rope_parameters={"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "beta_fast": 8.0,
                             "original_max_position_embeddings": 32},
            bos_token_id=0, eos_token_id=1),
        projector="stack", prompt="plain", template="Write {language}:\n", dtype=torch.float16, bos=False),
]


class ConvProjector(nn.Module):
    def __init__(self, d, d_llm):
        super().__init__()
        self.conv1 = nn.Conv1d(d, d, 3, padding=1)
        self.conv2 = nn.Conv1d(d, 4 * d, 3, stride=4, padding=1)
        self.linear1 = nn.Linear(4 * d, d)
        self.linear2 = nn.Linear(d, d_llm)
        self.norm = nn.LayerNorm(d_llm)

    def forward(self, frames):
        x = self.conv2(F.gelu(self.conv1(frames.T))).T
        return self.norm(F.relu(self.linear2(F.relu(self.linear1(x)))))


class StackProjector(nn.Module):
    K, HIDDEN = 3, 17

    def __init__(self, d, d_llm):
        super().__init__()
        self.linear1 = nn.Linear(self.K * d, self.HIDDEN)
        self.linear2 = nn.Linear(self.HIDDEN, d_llm)

    def forward(self, frames):
        missing = -len(frames) % self.K
        stacked = torch.cat([frames, frames.new_zeros(missing, frames.shape[1])]).reshape(-1, self.K * frames.shape[1])
        return self.linear2(F.gelu(self.linear1(stacked)))


def randomise(model, seed):
    """Values large enough that attention, norms and positions all matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if value.dim() > 1:
            value.data = noise * 1.3 / value[0].numel() ** 0.5
        elif name.endswith("norm.weight"):
            value.data = 1 + 0.3 * noise
        else:
            value.data = 0.2 * noise


def write_tokenizer(folder, case):
    characters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("WEGVTH ():\n") + ["th", "un"]
    vocabulary = {token: index for index, token in enumerate(SPECIAL + characters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h"), ("u", "n")], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    if case.bos:
        # Published Llama tokenizers add bos to whatever they encode; a prompt must not get it twice.
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>" if case.bos else None, eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=SPECIAL[3:], chat_template=CHAT_TEMPLATE if case.prompt == "chat" else None)
    fast.save_pretrained(folder, save_jinja_files=not case.chat_template_in_config)


def write_llm(folder, case, seed):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(case.config)
    randomise(model, seed)
    model.generation_config = GenerationConfig(eos_token_id=list(case.eos) if len(case.eos) > 1 else case.eos[0])
    model.to(case.dtype).save_pretrained(folder, max_shard_size="9KB" if case.shards else "1GB")
    if case.old_rope_layout:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        # Files of some versions hold the kind under its older name too.
        config["rope_scaling"] = None if rope["rope_type"] == "default" else rope | {"type": rope["rope_type"]}
        path.write_text(json.dumps(config, indent=2) + "\n")
    write_tokenizer(folder, case)


def add_lora(model, targets, seed):
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets))
    generator = torch.Generator().manual_seed(seed)
    for name, value in sorted(model.named_parameters()):
        if "lora_" in name:
            value.data = 0.4 * torch.randn(value.shape, generator=generator)
    return model


def lora_tensors(model, prefix):
    """LoRA parameters and their gradients, by the names of their sites."""
    tensors = {}
    for name, value in model.named_parameters():
        if "lora_" in name:
            site, matrix = name.removeprefix("base_model.model.").split(".lora_")
            tensors[f"lora.{prefix}{site}.{matrix[0]}"] = value.detach()
            tensors[f"grad.lora.{prefix}{site}.{matrix[0]}"] = value.grad
    return tensors


def prompt_of(case, tokenizer, lang):
    instruction = case.template.replace("{language}", LANGUAGES[lang]).replace("{lang}", lang)
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    if case.prompt == "plain":
        return [0] * case.bos + encode(instruction), []
    message = [{"role": "user", "content": instruction + "\uf8ff"}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    before, after = text.split("\uf8ff")
    return encode(before), encode(after)


def until_stop(ids, stops):
    kept = []
    for token in ids.tolist():
        if token in stops:
            break
        kept.append(token)
    return kept


def make_llm(case):
    folder = HERE / case.name
    shutil.rmtree(folder, ignore_errors=True)
    write_llm(folder, case, seed=len(case.name))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    stops = set(case.eos)
    # Look for inputs with which some rows end by themselves and others at the limit.
    for seed in range(1000):
        if make_llm_with(case, folder, tokenizer, stops, seed):
            return
    raise SystemExit(f"{case.name}: no seed gives texts of different lengths")


def make_llm_with(case, folder, tokenizer, stops, seed):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    model.requires_grad_(False)
    model = add_lora(model, LLM_TARGETS, seed)
    embed = model.get_input_embeddings()
    torch.manual_seed(seed)
    d_llm = case.config.hidden_size
    projector = {"conv": ConvProjector, "stack": StackProjector}[case.projector](D_ENCODER, d_llm)
    frames = [torch.randn(length, D_ENCODER) for length in FRAMES]
    prompts = [prompt_of(case, tokenizer, lang) for lang in LANGUAGES]
    texts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]

    def generate(row, **options):
        before, after = (torch.tensor(ids, dtype=torch.long) for ids in prompts[row])
        x = torch.cat([embed(before), projector(frames[row]), embed(after)])[None]
        return model.generate(inputs_embeds=x, attention_mask=torch.ones(x.shape[:2]), do_sample=False,
                              max_new_tokens=MAX_NEW_TOKENS, pad_token_id=2, return_dict_in_generate=True,
                              output_scores=True, **options)

    greedy, beam = [], []
    with torch.no_grad():
        for row in range(len(FRAMES)):
            result = generate(row)
            margins = [torch.diff(-scores[0].topk(2).values).item() for scores in result.scores]
            if min(margins) < 1e-2:
                return False
            greedy.append(until_stop(result.sequences[0], stops))
            beam.append(until_stop(generate(row, num_beams=BEAM).sequences[0], stops))
    for lengths in ({len(ids) for ids in texts} for texts in (greedy, beam)):
        if len(lengths) < 2 or min(lengths) < 2 or max(lengths) < MAX_NEW_TOKENS:
            return False
    if all(map(list.__eq__, greedy, beam)):
        return False

    rows = [torch.cat([embed(torch.tensor(before)), projector(row), embed(torch.tensor(after + text, dtype=torch.long))])
            for (before, after), row, text in zip(prompts, frames, texts)]
    longest = max(map(len, rows))
    # The padding holds noise: whoever looks at it gets wrong numbers.
    x = torch.stack([torch.cat([row, torch.randn(longest - len(row), d_llm)]) for row in rows])
    mask = torch.stack([(torch.arange(longest) < len(row)).long() for row in rows])
    logits = model(inputs_embeds=x, attention_mask=mask).logits
    nll = []
    for row, text in enumerate(texts):
        targets = torch.tensor(text + [1])
        first = len(rows[row]) - len(text) - 1
        nll.append(F.cross_entropy(logits[row, first:first + len(targets)], targets, reduction="sum"))
    nll = torch.stack(nll)
    nll.sum().backward()

    tensors = {"x": x, "nll": nll} | lora_tensors(model, "")
    tensors |= {f"frames.{row}": value for row, value in enumerate(frames)}
    tensors |= {f"speech.{row}": projector(value) for row, value in enumerate(frames)}
    tensors |= {f"logits.{row}": logits[row, :len(value)] for row, value in enumerate(rows)}
    tensors |= {f"projector.{name}": value for name, value in projector.named_parameters()}
    tensors |= {f"grad.projector.{name}": value.grad for name, value in projector.named_parameters()}
    save_file({name: value.detach().float().contiguous() for name, value in tensors.items()},
              HERE / f"{case.name}.safetensors")
    expected = {
        "projector": case.projector, "prompt": case.prompt, "template": case.template, "languages": list(LANGUAGES),
        "texts": TEXTS, "before": [before for before, _ in prompts], "after": [after for _, after in prompts],
        "tokens": [len(text) + 1 for text in texts], "greedy": greedy, "beam": beam,
        "greedy_texts": [tokenizer.decode(ids, skip_special_tokens=True) for ids in greedy]}
    (HERE / f"{case.name}.json").write_text(json.dumps(expected) + "\n")
    print(case.name, "seed", seed, "lengths", [len(ids) for ids in greedy], [len(ids) for ids in beam])
    return True


def make_whisper():
    """Two directories of one encoder: as the whole model is stored, and as the part without a language-model head."""
    torch.manual_seed(5)
    config = WhisperConfig(
        vocab_size=13, num_mel_bins=7, d_model=12, encoder_layers=2, encoder_attention_heads=3, encoder_ffn_dim=20,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=15, max_source_positions=60,
        max_target_positions=9, pad_token_id=1, bos_token_id=2, eos_token_id=3, decoder_start_token_id=4)
    whole = WhisperForConditionalGeneration(config)
    randomise(whole, 5)
    for name in ["whisper", "whisper_part"]:
        shutil.rmtree(HERE / name, ignore_errors=True)
    whole.save_pretrained(HERE / "whisper")
    whole.model.to(torch.bfloat16).save_pretrained(HERE / "whisper_part")
    (HERE / "whisper" / "generation_config.json").unlink(missing_ok=True)

    tensors = {"mel": torch.randn(7, 47)}
    for name in ["whisper", "whisper_part"]:
        model = WhisperModel.from_pretrained(HERE / name, dtype=torch.float32, attn_implementation="eager").eval()
        tensors |= whisper_outputs(model, tensors["mel"], name)
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, HERE / "whisper.safetensors")


def whisper_outputs(model, mel, name):
    frames = mel.shape[1]
    time = -(-frames // 2)
    model.requires_grad_(False)
    padded = F.pad(mel, (0, 2 * model.config.max_source_positions - frames))

    def run(encoder, mask=None):
        """transformers' own layers on an utterance of its own length."""
        x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel[None])))).transpose(1, 2)
        x = x + encoder.embed_positions.weight[:time]
        for layer in encoder.layers:
            x = layer(x, attention_mask=mask)
            x = x[0] if isinstance(x, tuple) else x
        return encoder.layer_norm(x)[0]

    tensors = {f"{name}.padded": model.encoder(padded[None]).last_hidden_state[0, :time],
               f"{name}.native": run(model.encoder)}
    chunk, left = 5, 7
    mask = torch.full((1, 1, time, time), float("-inf"))
    for query in range(time):
        start = query // chunk * chunk
        mask[0, 0, query, max(0, start - left):start + chunk] = 0
    tensors[f"{name}.chunked"] = run(model.encoder, mask)
    adapted = add_lora(model, rf".*encoder\.layers.*\.({'|'.join(ENCODER_TARGETS)})", 9)
    output = run(adapted.base_model.model.encoder)
    (output ** 3).sum().backward()
    return tensors | {f"{name}.adapted": output} | {
        f"{name}.{key}": value for key, value in lora_tensors(adapted, "model.").items()}


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    make_whisper()
    for case in CASES:
        make_llm(case)
