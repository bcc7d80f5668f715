"""Parts of a session that need no kernel."""
from passthru import session


def test_parameter(monkeypatch, tmp_path):
    monkeypatch.setattr(session, "PARAMETER", str(tmp_path / "none"))
    assert session.ring_parameter() == ""
    (tmp_path / "some").write_text("Y\n")
    monkeypatch.setattr(session, "PARAMETER", str(tmp_path / "some"))
    assert session.ring_parameter() == "Y"
