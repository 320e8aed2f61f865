"""The doctor's rules: each looks at an environment and says what stands in the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .doctor import RTX, TENSORRT, Environment, Finding, version

__all__ = ["diagnose"]

_DRIVERS = {12: 525, 13: 580}
"""The oldest branch of the driver for each generation of CUDA, whose minor versions are compatible."""

_JETPACK_PYTHON = {5: (3, 8), 6: (3, 10), 7: (3, 12)}
"""The interpreter that JetPack's own `tensorrt` package was made for."""


def diagnose(env: Environment) -> list[Finding]:
    """Everything that stands in the way, errors first."""
    rank = {"error": 0, "warning": 1, "note": 2}
    return sorted((f for rule in _RULES for f in rule(env)), key=lambda f: rank[f.level])


def _both_onnxruntimes(env: Environment) -> Iterator[Finding]:
    """Two distributions that write into one folder `onnxruntime`: which one is imported is a matter of luck."""
    both = [name for name in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino") if env.has(name)]
    if len(both) > 1:
        keep = "onnxruntime-gpu" if env.gpus and "onnxruntime-gpu" in both else both[0]
        yield Finding(
            "error",
            "onnxruntime",
            f"{' and '.join(f'{n} {env.packages[n]}' for n in both)} are installed over each other's files",
            f"pip uninstall -y {' '.join(both)} && pip install {keep}",
        )


def _onnxruntime_gpu(env: Environment) -> Iterator[Finding]:
    found = env.packages.get("onnxruntime-gpu")
    if found is None:
        return
    if env.nvidia.libcuda is None:
        yield Finding(
            "warning",
            "onnxruntime-gpu",
            f"onnxruntime-gpu {found} is installed, but libcuda is not found: it computes on the processor",
            "install NVIDIA's driver, or: pip uninstall -y onnxruntime-gpu && pip install onnxruntime",
        )
    if version(found) >= (1, 31) and not (env.has("nvidia-cudnn-cu13") or "cudnn" in env.nvidia.libraries):
        yield Finding(
            "warning",
            "onnxruntime-gpu",
            f"onnxruntime-gpu {found} needs CUDA 13 and cuDNN 9, no cuDNN is found",
            "pip install 'onnxruntime-gpu[cuda,cudnn]'",
        )


def _old_provider(env: Environment) -> Iterator[Finding]:
    """ONNX Runtime's own TensorRT provider is linked to libnvinfer.so.10."""
    gpu, package = env.packages.get("onnxruntime-gpu"), env.first(*TENSORRT)
    if gpu is not None and package is not None and version(env.packages[package])[0] >= 11:
        yield Finding(
            "warning",
            "tensorrt",
            f"{package} {env.packages[package]} brings libnvinfer.so.11, the TensorRT provider of "
            f"onnxruntime-gpu {gpu} loads libnvinfer.so.10: sfumato does not use it, a program that does will fail",
            "pip install 'tensorrt>=10.3,<11'",
        )


def _old_tensorrt(env: Environment) -> Iterator[Finding]:
    package = env.first(*TENSORRT)
    if package is not None and version(env.packages[package]) < (10, 3):
        yield Finding(
            "error",
            "tensorrt",
            f"{package} {env.packages[package]} is installed, sfumato builds with 10.3 to 11",
            "pip install 'tensorrt>=10.3'",
        )


def _no_driver(env: Environment) -> Iterator[Finding]:
    """TensorRT compiles on the GPU that it will run on; TensorRT-RTX builds without one."""
    package, rtx = env.first(*TENSORRT), env.first(*RTX)
    if env.nvidia.libcuda is None:
        if package is not None and env.nvidia.jetson is None:
            yield Finding(
                "error",
                "tensorrt",
                f"{package} {env.packages[package]} is installed, but libcuda is not found: it cannot even be opened",
                "install NVIDIA's driver; in a container: docker run --gpus all",
            )
        if rtx is not None:
            yield Finding(
                "note",
                "tensorrt_rtx",
                f"libcuda is not found: {rtx} {env.packages[rtx]} builds plans here and cannot look into or run them",
            )
    elif env.nvidia.driver is not None and not env.gpus:
        yield Finding(
            "warning",
            "driver",
            f"driver {env.nvidia.driver} is loaded, but it names no GPU",
            "look at nvidia-smi; in a container: docker run --gpus all",
        )


def _old_driver(env: Environment) -> Iterator[Finding]:
    branch = env.nvidia.branch
    if branch is None or env.nvidia.jetson is not None:
        return
    for backend, package, cuda in _cuda_users(env):
        if branch < _DRIVERS[cuda]:
            builds = backend == "tensorrt_rtx"
            yield Finding(
                "warning" if builds or backend == "onnxruntime-gpu" else "error",
                backend,
                f"{package} {env.packages[package]} is made with CUDA {cuda}, which needs driver {_DRIVERS[cuda]} or "
                f"newer, this one is {env.nvidia.driver}" + (": plans can be built but not run" if builds else ""),
                f"install driver {_DRIVERS[cuda]} or newer",
            )


def _cuda_users(env: Environment) -> Iterator[tuple[str, str, int]]:
    """(backend, distribution, generation of CUDA) of what is installed."""
    for backend, names in (("tensorrt_rtx", RTX), ("tensorrt", TENSORRT), ("onnxruntime-gpu", ("onnxruntime-gpu",))):
        package = env.first(*names)
        if package is None:
            continue
        if package.endswith(("-cu12", "-cu13")):
            yield backend, package, int(package[-2:])
        elif backend == "onnxruntime-gpu":
            yield backend, package, 13 if version(env.packages[package]) >= (1, 31) else 12
        elif env.first(f"{package}-cu12", f"{package}-cu12-libs"):
            yield backend, package, 12
        elif env.first(f"{package}-cu13", f"{package}-cu13-libs"):
            yield backend, package, 13


def _jetson(env: Environment) -> Iterator[Finding]:
    """JetPack brings `tensorrt` for its own Python; wheels from PyPI do not run on Orin."""
    if env.nvidia.jetson is None:
        return
    jetpack, package = env.nvidia.jetpack, env.first(*TENSORRT)
    wanted = None if jetpack is None else _JETPACK_PYTHON[jetpack]
    if wanted is not None and env.python[:2] != wanted:
        mine, its = (".".join(map(str, v)) for v in (env.python[:2], wanted))
        yield Finding(
            "error",
            "tensorrt",
            f"JetPack {jetpack} ({env.nvidia.jetson}) brings tensorrt for Python {its}, this is Python {mine}",
            f"python{its} -m venv --system-site-packages .venv",
        )
    elif env.nvidia.system_tensorrt is None:
        yield Finding(
            "error",
            "tensorrt",
            f"Jetson Linux {env.nvidia.jetson} has no Python package tensorrt",
            "sudo apt-get install python3-libnvinfer-dev",
        )
    if package is not None and jetpack == 6:
        yield Finding(
            "warning",
            "tensorrt",
            f"{package} {env.packages[package]} from PyPI hides JetPack's own, and has no libraries for Orin",
            f"pip uninstall -y {package}",
        )
    if env.first(*RTX) is not None:
        yield Finding(
            "error",
            "tensorrt_rtx",
            "TensorRT for RTX has no compute capability of a Jetson",
            "sfumato build BUNDLE --target tensorrt",
        )


def _python(env: Environment) -> Iterator[Finding]:
    if env.python < (3, 10):
        have = ".".join(map(str, env.python))
        yield Finding(
            "error", "python", f"Python {have} is running, sfumato needs 3.10 or newer", "install Python 3.10"
        )


def _no_backend(env: Environment) -> Iterator[Finding]:
    plans = env.gpus and (env.first(*RTX, *TENSORRT) or env.nvidia.system_tensorrt)
    if env.first("openvino", "onnxruntime", "onnxruntime-gpu") is None and not plans:
        yield Finding("error", "backends", "no library that runs networks is installed", "pip install 'sfumato[cpu]'")


def _slow_cpu(env: Environment) -> Iterator[Finding]:
    if env.has("openvino") and not {"amx_bf16", "avx512_bf16"} & set(env.cpu.flags):
        yield Finding(
            "note",
            "openvino",
            f"{env.cpu.model} does not multiply in bf16: OpenVINO computes in fp32, two to four times slower",
        )


_RULES: tuple[Callable[[Environment], Iterator[Finding]], ...] = (
    _python,
    _no_backend,
    _both_onnxruntimes,
    _onnxruntime_gpu,
    _old_provider,
    _old_tensorrt,
    _no_driver,
    _old_driver,
    _jetson,
    _slow_cpu,
)
