"""Loading a language model with transformers: where it goes, how precise it is, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot.engines import LoadOptions
from common.models import loading_errors, resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("auto", "float32", "float16", "bfloat16")


def load_weights(model: str, options: LoadOptions) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights (safetensors only) and tokenizer. ValueError names the model and the remedy."""
    if options.dtype not in DTYPES:
        raise ValueError(f"unknown dtype '{options.dtype}'; choose one of: {', '.join(DTYPES)}")
    place = resolve_model(model)
    _check_has_model(model, Path(place))
    arguments = _loading_arguments(options)
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = load_tokenizer(model)
    arguments["trust_remote_code"] = False  # refuse code that comes with a model; None would ask on the terminal
    with loading_errors(model):
        opener: Any = AutoModelForCausalLM
        if AutoConfig.from_pretrained(place, trust_remote_code=False).is_encoder_decoder:
            opener = AutoModelForSeq2SeqLM
        outcome: Any = opener.from_pretrained(place, use_safetensors=True, output_loading_info=True, **arguments)
    loaded, report = outcome
    if missing := sorted(report["missing_keys"]):
        # transformers would fill them with random numbers: an encoder loaded as a chat model talks nonsense.
        raise ValueError(f"cannot load model '{model}': it is no chat model, or lacks weights ({missing[0]}, ...)")
    loaded.eval()
    return loaded, tokenizer


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer alone."""
    from transformers import AutoTokenizer

    with loading_errors(model):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            resolve_model(model), trust_remote_code=False
        )
    return tokenizer


def _check_has_model(model: str, folder: Path) -> None:
    """ValueError for a directory without a model. Of a run that has not finished it names the newest checkpoint."""
    if (folder / "config.json").is_file():
        return
    checkpoints = [each for each in (folder / "checkpoints").glob("[!.]*") if (each / "trainer_state.json").is_file()]
    if checkpoints:
        newest = max(checkpoints, key=_step)
        raise ValueError(f"the training run '{model}' has not finished; finish it, or use its checkpoint {newest}")
    if (folder / "run.json").is_file():
        raise ValueError(f"the training run '{model}' has neither finished nor saved a checkpoint; run it again")
    raise ValueError(f"cannot load model '{model}': it has no config.json")


def _step(checkpoint: Path) -> int:
    """How many steps a checkpoint had been trained for."""
    with loading_errors(str(checkpoint)):
        return int(json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))["global_step"])


def _loading_arguments(options: LoadOptions) -> dict[str, Any]:
    """Options -> keyword arguments of from_pretrained, checked against the hardware at hand."""
    import torch

    if options.cpu_ram is not None and not options.gpu_vram:
        raise ValueError("--cpu-ram says what --gpu-vram may leave to the CPU; give --gpu-vram too")
    if sum(1 for given in (options.device, options.gpu_vram, options.gpu_id is not None) if given) > 1:
        raise ValueError("--device, --gpu-id and --gpu-vram exclude each other; choose one")
    if options.load_in_8bit and options.load_in_4bit:
        raise ValueError("--load-in-8bit and --load-in-4bit exclude each other; choose one")
    num_gpus = torch.cuda.device_count()
    for gpu_id in _named_gpus(options):
        if gpu_id >= num_gpus:
            raise ValueError(
                f"GPU {gpu_id} is not there: this machine has {num_gpus} CUDA GPUs; leave out --device, --gpu-id and "
                "--gpu-vram to run on what is there"
            )
    arguments: dict[str, Any] = {"dtype": options.dtype}
    if options.gpu_vram:
        arguments["device_map"] = "auto"
        arguments["max_memory"] = _max_memory(options)
    elif options.device or num_gpus:
        arguments["device_map"] = {"": options.device or f"cuda:{options.gpu_id or 0}"}
    on_cpu = options.device == "cpu" or "device_map" not in arguments
    if on_cpu and options.dtype == "auto":
        # Half precision saves memory on a CPU but is several times slower there.
        arguments["dtype"] = "float32"
    if options.load_in_8bit or options.load_in_4bit:
        arguments["quantization_config"] = _quantization(options)
        arguments.setdefault("device_map", "auto")
    return arguments


def _named_gpus(options: LoadOptions) -> list[int]:
    """The numbers of the CUDA GPUs that the options speak of."""
    kind, _, number = (options.device or "").partition(":")
    named = [int(number or 0)] if kind == "cuda" and (number or "0").isdigit() else []
    named += [gpu for gpu, _ in options.gpu_vram]
    return named if options.gpu_id is None else [*named, options.gpu_id]


def _max_memory(options: LoadOptions) -> dict[int | str, int]:
    """Bytes allowed on each GPU and on the CPU. Without --cpu-ram nothing is placed on the CPU."""
    limits: dict[int | str, int] = {gpu: int(gib * 2**30) for gpu, gib in options.gpu_vram}
    limits["cpu"] = int((options.cpu_ram or 0) * 2**30)
    return limits


def _quantization(options: LoadOptions) -> Any:
    import importlib.util

    import torch

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("8- and 4-bit loading needs bitsandbytes; install it with: pip install 'parley[gpu]'")
    from transformers import BitsAndBytesConfig

    if options.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
