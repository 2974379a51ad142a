"""Versions of vLLM: those tested pass, any other is refused with the mend."""

import pytest
import vllm

import feather.vllm
from feather.vllm.versions import check


@pytest.mark.parametrize("version", ["0.25.1", "0.31.0", "0.31.1rc1.dev3+g0123456", "0.32.0", "0.32.0+cpu", "0.33.0"])
def test_tested_versions_pass(version):
    check(version)


@pytest.mark.parametrize("version", ["0.28.0", "0.34.0", "0.3.1", "1.0", "dev"])
def test_any_other_is_refused_with_what_to_do(version, monkeypatch):
    monkeypatch.delenv("FEATHER_UNTESTED_VLLM", raising=False)
    told = "vLLM 0.25, 0.31, 0.32 and 0.33, and this is vLLM .*: install one of those.*or set FEATHER_UNTESTED_VLLM=1"
    with pytest.raises(ImportError, match=told):
        check(version)
    monkeypatch.setattr(vllm, "__version__", version)
    with pytest.raises(ImportError, match="Feather has been tested with"):
        feather.vllm.FeatherScheduler  # noqa: B018
    monkeypatch.setenv("FEATHER_UNTESTED_VLLM", "1")
    assert feather.vllm.FeatherScheduler.__name__ == "FeatherScheduler"
