"""Each module stands alone: it imports neither transformers nor peft, nor a module that is read after it."""

import pytest

ORDER = ["bert", "lora", "data", "train", "sample"]


@pytest.mark.parametrize("module", ORDER)
def test_imports(run, module):
    done = run("-c", f"import sys, {module}; print(*sys.modules)")
    loaded = set(done.stdout.split())
    assert module in loaded, done.stderr
    assert not loaded & {"transformers", "peft"}
    before = ORDER[:3] if module == "sample" else ORDER[: ORDER.index(module)]
    assert loaded & set(ORDER) <= {module, *before}
