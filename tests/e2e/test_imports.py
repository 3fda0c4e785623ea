"""What a process has imported after doing its work: import cost is part of the product."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "torchvision", "sklearn", "pandas", "scipy", "PIL", "onnx2torch", "skl2onnx", "joblib", "onnxscript")


def imported_by(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(found.stdout.split())


def test_importing_latmod_imports_nothing_heavy() -> None:
    modules = imported_by("import latmod")
    assert not modules & {*HEAVY, "numpy", "onnx", "onnxruntime", "click", "msgspec"}


def test_help_imports_no_engine() -> None:
    code = "import contextlib, sys\nfrom latmod.cli import main\nsys.argv = ['latmod', '--help']\n"
    code += "with contextlib.suppress(SystemExit):\n    main()"
    assert not imported_by(code) & {*HEAVY, "onnx", "onnxruntime", "numpy"}


@pytest.mark.parametrize("name", ["Prediction", "load_predictor", "predict", "inspect"])
def test_the_public_names_are_there(name: str) -> None:
    assert not imported_by(f"import latmod\nlatmod.{name}") & set(HEAVY)


def test_predicting_imports_neither_torch_nor_scikit_learn(exported_graphs: Path) -> None:
    graph = sorted(exported_graphs.glob("*.onnx"))[0]
    modules = imported_by(f"import latmod\nassert latmod.predict({str(graph)!r})")
    assert "onnxruntime" in modules
    assert not modules & set(HEAVY)


def test_the_functions_are_functions_even_after_their_modules_were_imported() -> None:
    imported_by(
        "import latmod.fitting, latmod.measuring, latmod.sweeping, latmod\n"
        "assert all(callable(f) for f in (latmod.fit, latmod.measure, latmod.sweep, latmod.predict, latmod.inspect))"
    )
