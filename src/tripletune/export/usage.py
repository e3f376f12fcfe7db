"""How an export is loaded, as text for its model card; the tests run the Python code."""

from __future__ import annotations

from collections.abc import Iterator

from tripletune.contract import AdapterContract, BaseIdentity
from tripletune.export.gguf import file_name

_IMPORT = {
    "merged": "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "adapter": "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer",
}
_CLASS = {"merged": "AutoModelForCausalLM", "adapter": "AutoPeftModelForCausalLM"}
_FOUR_BITS = """base = BitsAndBytesConfig(  # as it was trained; on full weights the adapter belongs to no model
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.{dtype},
)"""
FLOAT32_HEAD = """--hf-overrides '{"head_dtype": "float32"}'"""
"""vLLM's option for logits in float32, which 0.28 has for models that generate."""
_ORDER = '''labels = json.loads((folder / "label_tokens.json").read_text())


def order(chat, shown):
    """Labels of the `shown` candidates of a prompt, best first."""
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    head = model.get_output_embeddings().weight[list(labels.values())[:shown]]
    with torch.inference_mode():
        hidden = model(**inputs.to(model.device), output_hidden_states=True, logits_to_keep=1).hidden_states[-1][0, -1]
        scores = (head.float() @ hidden.float()).tolist()  # bfloat16 would round most of them to another one's
    return [label for _, label in sorted(zip(scores, labels), key=lambda pair: -pair[0])]'''
_WRITE = '''def answer(chat):
    """The answer's text."""
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    written = model.generate(**inputs.to(model.device), generation_config=GenerationConfig.from_pretrained(folder))
    return tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)'''


def usage(form: str, dataset: str, contract: AdapterContract, base: BaseIdentity, *, labelled: bool) -> Iterator[str]:
    """Paragraphs of the section "Use".

    Args:
        form: ``merged``, ``adapter`` or ``gguf``.
        dataset: of the run.
        contract, base: of the adapter.
        labelled: whether candidates have labels of one token each.
    """
    if form == "gguf":
        yield f"```sh\nllama-server --model {file_name(dataset, contract.dtype)} --jinja\n```"
    else:
        yield f"`DIR` is this folder.\n\n```python\n{_code(form, contract, labelled=labelled)}\n```"
    if form == "merged":
        yield f"```sh\nvllm serve DIR {FLOAT32_HEAD}\n```"
    if form == "adapter":
        yield _where_the_base_is(base, in_four_bits=contract.quantization == "nf4")
    yield "tripletune's `docs/guides/serve.md` has requests for vLLM and llama.cpp."


def _where_the_base_is(base: BaseIdentity, *, in_four_bits: bool) -> str:
    if base.hub_revision:
        return f"The base model is fetched from the hub: {base.source} at {base.hub_revision}."
    return (
        "The base model is in `base/`, under the full path that this folder was exported to "
        "(`base_model_name_or_path` of `adapter_config.json`), as PEFT looks for a relative one in the present folder. "
        "After moving the folder write its new path there, or name the base yourself, which works anywhere: "
        '`PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base", dtype=...'
        f"{', quantization_config=base' if in_four_bits else ''}), folder)`."
    )


def _code(form: str, contract: AdapterContract, *, labelled: bool) -> str:
    imports = _IMPORT[form] if labelled else _IMPORT[form].replace("AutoTokenizer", "AutoTokenizer, GenerationConfig")
    in_four_bits = form == "adapter" and contract.quantization == "nf4"
    if in_four_bits:
        imports = imports.replace("AutoTokenizer", "AutoTokenizer, BitsAndBytesConfig")
    named = f"folder, dtype=torch.{contract.dtype}{', quantization_config=base' if in_four_bits else ''}"
    return "\n".join(
        [
            *(["import json"] if labelled else []),
            "from pathlib import Path",
            "",
            "import torch",
            imports,
            "",
            'folder = Path("DIR")',
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            *([_FOUR_BITS.format(dtype=contract.dtype)] if in_four_bits else []),
            f"model = {_CLASS[form]}.from_pretrained({named}).eval()",
            *(["", ""] if not labelled else []),
            _ORDER if labelled else _WRITE,
        ]
    )
