"""Checkpoints: safe reading of pickles and safetensors, prefixes, EMA, and loading that says what does not fit."""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn

from ..errors import CheckpointError

__all__ = ["StateDict", "build", "ema_weights", "read_checkpoint", "read_folder", "read_record", "section"]

StateDict: TypeAlias = "dict[str, Tensor]"
Module = TypeVar("Module", bound=nn.Module)

_INERT = re.compile(r"(pytorch_lightning|lightning|lightning_fabric)\.")
"""Modules whose classes Lightning leaves in checkpoints as keys and counters; an empty class stands in for them."""

_UNSAFE = re.compile(r"GLOBAL ([\w.]+)|[Uu]nsupported (?:global|class) ([\w.]+)|class ([\w.]+) was not")


class _Stand:
    """Stands in for a class of PyTorch Lightning; takes anything, does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def read_checkpoint(path: Path | str, *, wrapper: str = "state_dict") -> StateDict:
    """The tensors of a ``.ckpt``, ``.pt``, ``.bin`` or ``.safetensors`` file, by their published names.

    Pickles are read by torch's restricted unpickler, which runs no code. A `wrapper` is opened if it is there;
    what is no tensor (counters, optimiser states) is left out. Tensors keep their type and stay on the disk until used
    where the format allows.

    Raises:
        CheckpointError: The file is missing, truncated or foreign, or is a pickle that calls code (named).
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; pass a .ckpt, .safetensors or a diffusers folder")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state = content.get(wrapper, content)
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: {wrapper!r} is a {type(state).__name__}, need tensors by name")
    tensors = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        found = ", ".join(map(str, list(state)[:5])) or "nothing"
        raise CheckpointError(f"{path}: holds no tensors by name but {found}; is it a checkpoint?")
    return tensors


def read_record(path: Path | str, key: str) -> dict[str, Any]:
    """A record of plain values that a ``.ckpt`` or ``.pt`` file keeps beside its tensors; empty if there is none."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return {}
    record = _read_pickle(path).get(key)
    return dict(record) if isinstance(record, Mapping) else {}


def read_folder(folder: Path) -> StateDict:
    """The tensors of one component of a diffusers or transformers folder, shards included; safetensors come first.

    Raises:
        CheckpointError: The folder has no weights that we read.
    """
    for pattern in ("*model*.safetensors", "*model*.bin"):
        # A variant (fp16, ema) is named between stem and suffix; without one the plain file wins.
        paths = [p for p in sorted(folder.glob(pattern)) if p.is_file()]
        plain = [p for p in paths if re.fullmatch(r"(diffusion_pytorch_)?(pytorch_)?model(-\d+-of-\d+)?", p.stem)]
        chosen = plain or [p for p in paths if ".fp16" in p.name] or paths[:1]
        if chosen:
            state: StateDict = {}
            for path in chosen:
                state.update(read_checkpoint(path))
            return state
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) if folder.is_dir() else "no such folder"
    raise CheckpointError(f"{folder}: has no weights (*.safetensors or *.bin), only {found}; download the component")


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return cast("dict[str, Any]", load_file(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is not a whole safetensors file ({error}); download it again") from error


def _read_pickle(path: Path) -> Mapping[Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on foreign pickle protocols
            content = _load(path)
    except pickle.UnpicklingError as error:
        _refuse(path, error)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        told = isinstance(error, (RuntimeError, OSError)) and str(error)
        reason = str(error).split(". ")[0].splitlines()[0][:200] if told else "it ends or breaks off early"
        raise CheckpointError(f"{path}: is not a whole torch checkpoint ({reason}); download it again") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, need tensors by name; is it a checkpoint?")
    return content


def _load(path: Path) -> Any:
    """torch.load with the restricted unpickler, Lightning's classes replaced; memory-mapped where the format allows."""
    inert = []
    zipped = False
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        zipped = True
        inert = [(_Stand, name) for name in names if _INERT.match(name)]
    except Exception:  # the legacy format cannot be looked into: then only what torch allows is read
        inert = []
    with torch.serialization.safe_globals(cast(Any, inert)):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except RuntimeError as error:
            if not zipped or "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)


def _refuse(path: Path, error: pickle.UnpicklingError) -> NoReturn:
    text = str(error)
    match = _UNSAFE.search(text)
    name = next((group for group in match.groups() if group), None) if match else _called(path)
    if name is None:
        raise CheckpointError(
            f"{path}: is not a torch checkpoint ({text.splitlines()[-1][:160]}); download it again"
        ) from error
    raise CheckpointError(
        f"{path}: is a pickle that calls {name}, and pickled code is never run here; if you trust it, convert it "
        "elsewhere to plain tensors: "
        "torch.save({'state_dict': torch.load(path, weights_only=False)['state_dict']}, 'plain.ckpt')"
    ) from error


def _called(path: Path) -> str | None:
    """The first thing that a plain pickle of any protocol calls, read without running it; None if it is no pickle."""
    words: list[str] = []
    try:
        with path.open("rb") as file:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name in ("GLOBAL", "INST"):
                    return str(argument).replace(" ", ".")
                if opcode.name == "STACK_GLOBAL":
                    return ".".join(words[-2:]) or None
                if isinstance(argument, str):
                    words.append(argument)
    except Exception:  # pickletools raises many kinds on what is no pickle
        return None
    return None


def section(state: Mapping[str, Tensor], prefix: str) -> StateDict:
    """The tensors whose names begin with `prefix`, without it."""
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def ema_weights(state: Mapping[str, Tensor], prefix: str = "model.diffusion_model.") -> StateDict | None:
    """The averaged weights of latent diffusion's UNet under their plain names, or None if the file has none.

    LitEma keeps them as ``model_ema.`` + name, all dots removed, and the name begins after ``model.``: so
    ``model.diffusion_model.out.0.weight`` is ``model_ema.diffusion_modelout0weight``. It covers the UNet alone.

    Raises:
        CheckpointError: Averages are there, but not for every weight.
    """
    if not any(key.startswith("model_ema.") for key in state):
        return None
    result: StateDict = {}
    missing = []
    for key in state:
        if key.startswith(prefix):
            flat = "model_ema." + key.removeprefix("model.").replace(".", "")
            if flat in state:
                result[key[len(prefix) :]] = state[flat]
            else:
                missing.append(flat)
    if missing:
        raise CheckpointError(f"EMA weights are incomplete: {_some(missing)} missing; put use_ema: false in the config")
    return result


def build(
    factory: Callable[[], Module], state: Mapping[str, Tensor], what: str, *, ignore: Sequence[str] = ()
) -> Module:
    """A module with exactly these weights in float32; it is made without storage, so none is initialised in vain.

    Arguments:
        factory: Makes the module.
        state: Its weights, float32, float16 or bfloat16.
        what: What the weights are of, for messages.
        ignore: Patterns (`re.fullmatch`-ed prefixes) of names that may be left over.

    Raises:
        CheckpointError: Names are missing or left over, a shape differs, or a weight is not finite.
    """
    with torch.device("meta"):
        module = factory()
    own = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    state = {k: v for k, v in state.items() if k in own or not any(re.match(p, k) for p in ignore)}
    missing, extra = [k for k in own if k not in state], [k for k in state if k not in own]
    if missing or extra:
        lists = [
            f"{len(keys)} {kind}: {_some(keys)}" for kind, keys in (("missing", missing), ("extra", extra)) if keys
        ]
        raise CheckpointError(f"{what}: keys do not fit the network ({'; '.join(lists)}); is the config its own?")
    wrong = [f"{k} is {tuple(v.shape)}, need {own[k]}" for k, v in state.items() if tuple(v.shape) != own[k]]
    if wrong:
        raise CheckpointError(
            f"{what}: {len(wrong)} shapes do not fit the network: {_some(wrong, '; ')}; is the config its own?"
        )
    plain = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    broken = [key for key, value in plain.items() if value.is_floating_point() and not _finite(value)]
    if broken:
        raise CheckpointError(
            f"{what}: {len(broken)} weights hold NaN or infinity: {_some(broken)}; the file is damaged or its training "
            "diverged: take another"
        )
    module.load_state_dict(plain, strict=True, assign=True)
    _fill_buffers(module, what)
    return module.eval().requires_grad_(False)


def _finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite, without a copy."""
    return not tensor.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


def _fill_buffers(module: nn.Module, what: str) -> None:
    left = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    if left:
        raise CheckpointError(f"{what}: the network makes {_some(left)} itself, which has no values here")


def _some(names: Iterable[str], separator: str = ", ") -> str:
    listed = list(names)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return separator.join(listed[:5]) + more
