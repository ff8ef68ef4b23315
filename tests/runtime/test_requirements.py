import pytest
import torch

from scope_rlhf.runtime.requirements import cpu_has_bf16


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": True}, True),
        ({"architecture": "x86_64", "amx_bf16": True}, True),
        ({"architecture": "aarch64", "neon": True, "bf16": True}, True),
        ({"architecture": "aarch64", "neon": True}, False),
    ],
)
def test_a_cpu_has_bf16_where_its_instructions_say_so(monkeypatch, has, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert cpu_has_bf16() == expected
    # torch 2.8 has no such list, and no function at all for some machines.
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has.get("avx512_bf16", False), raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has.get("amx_bf16", False), raising=False)
    assert cpu_has_bf16() == (expected and has["architecture"] == "x86_64")
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert not cpu_has_bf16()
