"""Which transport is chosen."""
from passthru import transport


def test_parameter(monkeypatch, tmp_path):
    monkeypatch.setattr(transport, "PARAMETER", str(tmp_path / "none"))
    assert transport.ring_parameter() == ""
    (tmp_path / "some").write_text("Y\n")
    monkeypatch.setattr(transport, "PARAMETER", str(tmp_path / "some"))
    assert transport.ring_parameter() == "Y"
