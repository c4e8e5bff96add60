"""tests/bench/benchmarks.py: the page is written from JSON lines, of one commit a section."""

import json

import benchmarks
import pytest

LINE = {
    "section": "codebook",
    "case": "eval",
    "seconds": 1.5,
    "spread": 0.25,
    "peer_seconds": 6.0,
    "speedup": 4.0,
    "commit": "abc",
    "machine": "2 cores",
}


def write(tmp_path, monkeypatch, lines) -> str:
    monkeypatch.setattr(benchmarks, "LINES", tmp_path / "lines.jsonl")
    monkeypatch.setattr(benchmarks, "PAGE", tmp_path / "page.md")
    benchmarks.LINES.write_text("".join(json.dumps(line) + "\n" for line in lines))
    benchmarks.write()
    return benchmarks.PAGE.read_text(encoding="utf-8")


def test_a_section_shows_its_lines_and_its_command(tmp_path, monkeypatch):
    page = write(tmp_path, monkeypatch, [LINE])
    assert "| eval | 1.5 | 25% | 6 | 4 |" in page and "Commit abc; 2 cores." in page
    assert benchmarks.SECTIONS["codebook"].command in page
    assert benchmarks.SECTIONS["evaluate"].title not in page  # no line belongs to it


def test_a_section_of_two_commits_is_refused_and_two_sections_are_not(tmp_path, monkeypatch):
    other = {**LINE, "section": "evaluate", "commit": "def"}
    page = write(tmp_path, monkeypatch, [LINE, other])
    assert "Commit abc;" in page and "Commit def;" in page
    with pytest.raises(SystemExit, match="abc.*def"):
        write(tmp_path, monkeypatch, [LINE, {**LINE, "commit": "def"}])


def test_the_published_page_is_that_of_its_lines(tmp_path, monkeypatch, capsys):
    published = benchmarks.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(benchmarks, "PAGE", tmp_path / "page.md")
    benchmarks.write()
    assert benchmarks.PAGE.read_text(encoding="utf-8") == published
