"""Settings: profiles, environment, secrets, and every way to get them wrong."""

import re
from pathlib import Path

import pytest

from workbench.base import settings
from workbench.base.errors import BadInput, BadSetting, NotFound
from workbench.base.settings import load_settings, project_path, resolve_secret


def write(folder: Path, text: str) -> None:
    (folder / "settings.ini").write_text(text)


def test_default_is_inherited_and_the_environment_wins(project: Path, monkeypatch) -> None:
    write(project, "[DEFAULT]\nport = 1234\n[laptop]\n[production]\nport = 80\n")
    assert load_settings().port == 1234
    assert load_settings("production").port == 80
    monkeypatch.setenv("WORKBENCH_PROFILE", "production")
    assert load_settings().port == 80
    monkeypatch.setenv("WORKBENCH_PORT", "99")
    assert load_settings().port == 99


def test_a_changed_file_is_read_again(project: Path) -> None:
    write(project, "[laptop]\nport = 1234\n")
    assert load_settings().port == 1234
    write(project, "[laptop]\nport = 12345\n")
    assert load_settings().port == 12345


@pytest.mark.parametrize(
    ("text", "profile", "said"),
    [
        ("[laptop]\n", "lapton", "did you mean 'laptop'"),
        ("[laptop]\nprot = 80\n", "laptop", "did you mean 'port'"),
        ("[laptop]\nport = eighty\n", "laptop", "port = 'eighty'"),
        ("[laptop]\nport = 0\n", "laptop", "1 to 65535"),
        ("[laptop]\nlog_format = xml\n", "laptop", "accepted: text or json"),
        ("[laptop]\nserve_token = hunter2\n", "laptop", "env:NAME or file:PATH"),
        ("port = 80\n", "laptop", "cannot be read"),
        ("[laptop]\nport = 80\nport = 81\n", "laptop", "cannot be read"),
        ("[other]\n", "laptop", "it has other"),
    ],
)
def test_bad_settings_name_file_section_and_accepted_form(
    project: Path, text: str, profile: str, said: str
) -> None:
    write(project, text)
    with pytest.raises(BadSetting) as caught:
        load_settings(profile)
    assert said in str(caught.value)
    assert "settings.ini" in str(caught.value)


def test_a_profile_is_a_name(project: Path) -> None:
    with pytest.raises(BadInput, match="profile is 3, expected str"):
        load_settings(3)


def test_a_binary_settings_file_is_said_to_be_unreadable(project: Path) -> None:
    (project / "settings.ini").write_bytes(b"\xff\xfe[laptop]")
    with pytest.raises(BadSetting, match="cannot be read"):
        load_settings()


def test_paths_start_at_the_project_wherever_one_stands(project: Path, monkeypatch) -> None:
    inside = project / "notebooks" / "flights"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert project_path("data/x") == project / "data/x"
    assert project_path("/abs/x") == Path("/abs/x")


def test_secrets_are_references(project: Path, monkeypatch) -> None:
    monkeypatch.setenv("TOKEN_FOR_TEST", "s3cret")
    (project / "token").write_text("s3cret\n")
    assert resolve_secret("env:TOKEN_FOR_TEST") == resolve_secret(f"file:{project}/token") == "s3cret"
    for reference in ("env:NOT_SET_ANYWHERE", "file:/no/such/file"):
        with pytest.raises(NotFound):
            resolve_secret(reference)
    with pytest.raises(BadSetting) as caught:
        resolve_secret("hunter2")
    assert "hunter2" not in str(caught.value)


def test_a_mistake_in_the_environment_is_not_blamed_on_the_file(project: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_PORT", "abc")
    with pytest.raises(BadSetting, match="WORKBENCH_PORT = 'abc' in the environment") as caught:
        load_settings()
    assert "settings.ini" not in str(caught.value)
    monkeypatch.delenv("WORKBENCH_PORT")
    monkeypatch.setenv("WORKBENCH_STOER", "/tmp/x")
    with pytest.raises(BadSetting, match="did you mean 'WORKBENCH_STORE'"):
        load_settings()


@pytest.mark.parametrize("text", ["", ".", "./"])
def test_a_store_has_a_folder_of_its_own(project: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.delenv("WORKBENCH_STORE")
    write(project, f"[laptop]\nstore = {text}\n")
    with pytest.raises(BadSetting, match="give it a folder of its own"):
        load_settings()


def test_no_variable_of_our_own_is_taken_for_a_misspelt_one() -> None:
    "A warm kernel is told that it is one by WORKBENCH_KERNEL, and reads settings all the same."
    texts = [path.read_text() for path in (Path(settings.__file__).parents[1]).rglob("*.py")]
    names = {name for text in texts for name in re.findall(r"\"(WORKBENCH_[A-Z_]*[A-Z])\"", text)}
    assert {"WORKBENCH_KERNEL", "WORKBENCH_KERNELS", "WORKBENCH_DOORS"} <= names
    settings._check_variables(names)
