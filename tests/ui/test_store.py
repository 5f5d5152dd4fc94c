from __future__ import annotations

from pathlib import Path

import pytest

from omni_app.conversation import Part
from omni_app.ui import store as store_module
from omni_app.ui.store import Conversation, Store, Turn

VISITOR = "a" * 32


def kept(store: Store, *turns: Turn, visitor: str = VISITOR) -> Conversation:
    conversation = store.new(visitor)
    conversation.turns += turns
    assert store.save(conversation) == ""
    return conversation


def test_what_is_saved_is_read_again_by_the_next_process(tmp_path: Path) -> None:
    conversation = Store(tmp_path).new(VISITOR)
    conversation.media_folder.mkdir(parents=True)
    picture = conversation.media_folder / "p.jpg"
    picture.write_bytes(b"jpeg")
    speech = conversation.media_folder / "a.wav"
    asked = Turn("user", "what is it", [Part("image", path=picture, name="cat.png", width=4, height=3)], heard="meow")
    answered = Turn("assistant", "a cat", speech=speech, figures="first text 1 s", note="cut", liked=True)
    conversation.turns += [asked, answered]
    assert Store(tmp_path).save(conversation) == ""
    again = Store(tmp_path).get(VISITOR, conversation.id)
    assert again is not None
    assert (again.title, again.turns) == ("what is it", [asked, answered])


def test_another_visitors_conversation_is_absent(tmp_path: Path) -> None:
    store = Store(tmp_path)
    conversation = kept(store, Turn("user", "secret"))
    for visitor in ("b" * 32, ""):
        assert store.get(visitor, conversation.id) is None
        assert Store(tmp_path).get(visitor, conversation.id) is None
        assert store.all(visitor) == []


@pytest.mark.parametrize("key", ["", "..", "../other", "a/b", "a\0b", None, "." * 300])
def test_keys_cannot_climb(tmp_path: Path, key: str | None) -> None:
    assert Store(tmp_path).get(VISITOR, key) is None


def test_a_new_one_takes_the_key_that_it_is_given_if_that_is_one_and_is_free(tmp_path: Path) -> None:
    key = "0123456789abcdef" * 2
    assert Store(tmp_path).new(VISITOR, key).id == key
    unreadable = Store(tmp_path).new(VISITOR, key)
    unreadable.folder.mkdir(parents=True)
    (unreadable.folder / "conversation.json").write_text("{")
    for other in (key, "", None, "../" + key[3:], key.upper(), key + "0"):
        assert Store(tmp_path).new(VISITOR, other).id not in (key, other)


def test_list_is_newest_first_and_searches_titles_texts_and_transcripts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = kept(store, Turn("user", "apples"), Turn("assistant", "They are Red"))
    second = kept(store, Turn("user", media=[], heard="tell me about pears"))
    store.new(VISITOR)
    assert [c.id for c in store.all(VISITOR)] == [second.id, first.id]
    assert [c.id for c in store.all(VISITOR, "red")] == [first.id]
    assert [c.id for c in store.all(VISITOR, "PEARS")] == [second.id]


def test_full_disk_is_said_and_the_conversation_lives_on_in_memory(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "visitors").write_text("a file where the folder should be")
    conversation = store.new(VISITOR)
    conversation.turns.append(Turn("user", "hello"))
    assert "could not be saved" in store.save(conversation)
    assert store.get(VISITOR, conversation.id) is conversation


def test_a_conversation_that_somebody_works_on_is_not_read_a_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MOST_HELD", 1)
    store = Store(tmp_path)
    conversation = kept(store, Turn("user", "hello"))
    kept(store, Turn("user", "others"))
    assert store.all(VISITOR)[1] is conversation
    assert store.get(VISITOR, conversation.id) is conversation
    conversation.turns.append(Turn("assistant", "not saved yet"))
    key = conversation.id
    del conversation
    kept(store, Turn("user", "yet others"))
    again = store.get(VISITOR, key)
    assert again is not None
    assert [turn.text for turn in again.turns] == ["hello"]


def test_damaged_file_is_left_out_and_left_alone(tmp_path: Path) -> None:
    conversation = kept(Store(tmp_path), Turn("user", "hello"))
    path = conversation.folder / "conversation.json"
    path.write_text(path.read_text()[:-20])
    assert Store(tmp_path).all(VISITOR) == []
    assert path.exists()


def test_delete_takes_the_media_along(tmp_path: Path) -> None:
    store = Store(tmp_path)
    conversation = kept(store, Turn("user", "hello"))
    conversation.media_folder.mkdir()
    (conversation.media_folder / "x.wav").write_bytes(b"")
    store.delete(conversation)
    assert not conversation.folder.exists()
    assert store.get(VISITOR, conversation.id) is None


def test_system_prompt_comes_first_and_empty_turns_are_not_sent(tmp_path: Path) -> None:
    conversation = kept(Store(tmp_path), Turn("user", "hello"), Turn("assistant", "", note="failed"))
    messages = conversation.messages("Be brief.")
    assert [(message.role, message.text) for message in messages] == [("system", "Be brief."), ("user", "hello")]
    assert [message.role for message in conversation.messages("  ")] == ["user"]


def test_title_follows_the_first_message_until_the_visitor_names_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    conversation = kept(store, Turn("user", media=[Part("audio", path=tmp_path / "r.wav", name="recording")]))
    assert conversation.title == "recording"
    conversation.turns[0].heard = "What is the tallest mountain?"
    store.save(conversation)
    assert conversation.title == "What is the tallest mountain?"
    store.rename(conversation, "  My   mountains ")
    conversation.turns[0].heard = "something else"
    store.save(conversation)
    again = Store(tmp_path).get(VISITOR, conversation.id)
    assert again is not None
    assert (again.title, again.named) == ("My mountains", True)
