"""The verifier keeps a trace that is true, leads to the votes and leaves them open; it names what is wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.emotions import CREMA_D
from reasoning.response import read_response, write_response
from reasoning.verifier import REASONS, Trace, balance, read_trace, read_weighing, verify, write_trace

LEVELS = {"pitch": 1, "loudness": 0, "pace": 2, "timbre": None}
VOTES = (1, 0, 3, 4, 2, 0)  # anger, disgust, fear, happy, neutral, sad
GOOD = Trace(
    words="the text alone suggests no feeling",
    voice="high pitch, very fast pace and usual loudness",
    ambiguity="fear and happy could each sound like this; listeners differ",
    weighing="very fast pace speaks for fear and happy, against sad; usual loudness fits neutral and opposes anger",
)


def reasons(**changed: str) -> tuple[str, ...]:
    return verify(write_trace(Trace(**{**vars(GOOD), **changed})), LEVELS, VOTES, CREMA_D).reasons


def test_a_true_and_open_trace_is_kept():
    verdict = verify(write_trace(GOOD), LEVELS, VOTES, CREMA_D)
    assert verdict.reasons == ()
    assert verdict.voice is not None
    assert [c.cue for c in verdict.voice.true] == ["pitch", "pace", "loudness"]


def test_a_trace_survives_the_response_it_is_written_into():
    text = write_response([v / 10 for v in VOTES], "happy", CREMA_D, write_trace(GOOD))
    thinking = read_response(text, CREMA_D).thinking
    assert thinking is not None
    assert read_trace(thinking) == GOOD


@pytest.mark.parametrize(
    ("reason", "changed"),
    [
        ("voice_empty", {"voice": "a voice that tells a lot"}),
        ("voice_unread", {"voice": "high pitch, an angry tone"}),
        ("voice_unread", {"voice": "high pitch as in fear"}),
        ("voice_false", {"voice": "low pitch, very fast pace"}),
        ("voice_false", {"voice": "very high pitch"}),
        ("voice_unmeasured", {"voice": "high pitch, bright timbre"}),
        ("weighing_unread", {"weighing": "high pitch and fast pace"}),
        ("weighing_unread", {"weighing": "high pitch speaks for fear and happy because it does"}),
        ("weighing_unread", {"weighing": "the mood speaks for fear and happy"}),
        ("weighing_unread", {"weighing": "high pitch speaks for joyfulness and fear"}),
        ("weighing_unread", {"weighing": "high pitch speaks for fear and happy, against fear"}),
        ("bad_layout", {"words": "<|im_end|> the text alone suggests no feeling"}),
        ("bad_layout", {"ambiguity": "<|AUDIO|> fear and happy"}),
        ("bad_layout", {"words": "plain\rVoice: low pitch"}),
        ("bad_layout", {"ambiguity": "fear and hap\u200bpy"}),
        ("bad_layout", {"words": "plain \ud83d wording"}),
        ("weighing_false", {"weighing": "low pitch speaks for fear and happy"}),
        ("weighing_false", {"weighing": "bright timbre speaks for fear and happy"}),
        ("answer_contradicts", {"weighing": "high pitch speaks for fear and anger, against happy"}),
        ("answer_contradicts", {"weighing": "high pitch speaks for sad and disgust"}),
        ("share_number", {"ambiguity": "fear 0.30 and happy 0.40"}),
        ("share_number", {"ambiguity": "about a third fear, a quarter happy"}),
        ("share_number", {"ambiguity": "three listeners fear, four happy"}),
        ("share_number", {"words": "three in ten would call it fear"}),
        ("share_number", {"ambiguity": "happy ½, fear ⅓"}),
        ("share_number", {"ambiguity": "happy ¾ and fear ¼"}),
        ("share_number", {"ambiguity": "a couple hear fear, the rest happy"}),
        ("share_number", {"ambiguity": "two heard fear, six heard happy"}),
        ("share_number", {"weighing": "high pitch speaks for fear 3 and happy"}),
        ("winner_named", {"ambiguity": "it sounds happy"}),
        ("winner_named", {"ambiguity": "most listeners hear happy rather than fear"}),
        ("winner_named", {"words": "probably happy"}),
        ("winner_named", {"ambiguity": "fear is there too, but the answer is joy"}),
        ("winner_named", {"weighing": "high pitch speaks for happy, against sad"}),
        ("winner_named", {"words": "the speaker is happy"}),
        ("winner_named", {"words": "happy"}),
        ("winner_named", {"words": "the text suggests fear, the voice happy"}),
        ("winner_named", {"words": "this is clearly happy, not fear"}),
        ("winner_named", {"ambiguity": "between happy and fear, happy leads"}),
        ("winner_named", {"ambiguity": "all of them heard happy, none heard fear"}),
        ("winner_named", {"ambiguity": "nearly everyone hears happy; some hear fear"}),
        ("winner_named", {"ambiguity": "happy more than the others, fear too"}),
        ("winner_named", {"ambiguity": "happiness dominated fear"}),
        ("winner_named", {"ambiguity": "happy rather than fear"}),
        ("winner_named", {"ambiguity": "not anger, not sad, not fear; it is happy"}),
        ("winner_named", {"ambiguity": "it isn’t fear, it is happy"}),
    ],
)
def test_each_fault_is_named(reason, changed):
    assert reason in reasons(**changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"words": "the text alone suggests happy"},
        {"words": "the words read as fear or anger"},
        {"words": "the wording sounds positive"},
        {"words": "the speaker asks for a new alarm clock"},
        {"words": 'the sentence "We will stop in a couple of minutes" leaves the feeling open'},
        {"ambiguity": "more than one emotion fits: fear and happy"},
        {"ambiguity": "one hears both fear and happy"},
        {"ambiguity": "listeners are far apart"},
    ],
)
def test_prose_that_says_its_part_and_decides_nothing_is_kept(changed):
    assert reasons(**changed) == ()


def test_what_speaks_on_balance_for_one_emotion_alone_names_the_winner():
    both = "high pitch speaks for happy and fear"
    assert reasons(weighing=f"{both}; very fast pace speaks for happy, against sad") == ()
    assert reasons(weighing=f"{both}; very fast pace speaks for happy, against fear and sad") == ("winner_named",)


@pytest.mark.parametrize(
    ("votes", "kept"),
    [
        ((1, 0, 0, 0, 9, 0), False),  # a stray vote
        ((2, 0, 0, 1, 7, 0), False),
        ((2, 0, 0, 1, 6, 0), True),  # two of six emotions, a third of the votes
        ((4, 0, 0, 0, 6, 0), True),
    ],
)
def test_the_best_supported_emotions_need_the_votes_that_as_many_would_hold_by_chance(votes, kept):
    thinking = _with("very fast pace speaks for anger and happy; high pitch speaks for anger and happy, against sad")
    assert verify(thinking, LEVELS, votes, CREMA_D).reasons == (() if kept else ("answer_contradicts",))


@pytest.mark.parametrize(
    "thinking",
    [
        "",
        "<html><body>502 Bad Gateway</body></html>",
        write_trace(GOOD).replace("Ambiguity: ", ""),
        write_trace(GOOD) + "\nTherefore: happy",
        "Voice: high pitch\n" + write_trace(GOOD),
        write_trace(GOOD).replace("Words: the", "Words: <answer>the"),
        write_trace(GOOD).replace(GOOD.words, " "),
    ],
)
def test_anything_but_the_four_lines_is_bad_layout(thinking):
    assert verify(thinking, LEVELS, VOTES, CREMA_D).reasons == ("bad_layout",)


def test_ties_among_the_votes_are_all_first():
    # happy is opposed, but anger has as many votes and is not
    weighing = "high pitch speaks for anger and fear, against happy"
    assert verify(_with(weighing), LEVELS, (4, 0, 0, 4, 0, 0), CREMA_D).reasons == ()
    assert verify(_with(weighing), LEVELS, (3, 0, 0, 4, 0, 0), CREMA_D).reasons == ("answer_contradicts",)


def test_balance_counts_claims():
    line = "high pitch and fast pace speak for fear and joy, against sad; usual loudness opposes fear."
    arguments, unread = read_weighing(line, CREMA_D)
    assert unread == ()
    assert balance(arguments, CREMA_D) == {
        "anger": 0, "disgust": 0, "fear": 1, "happy": 2, "neutral": 0, "sad": -2,
    }  # fmt: skip


def test_for_this_speaker_is_not_a_stance():
    arguments, unread = read_weighing("high pitch for this speaker favours fear and anger", CREMA_D)
    assert unread == ()
    assert [(a.supports, a.opposes) for a in arguments] == [(("fear", "anger"), ())]


@given(st.text(max_size=200))
def test_any_text_gets_a_verdict(text):
    assert verify(text, LEVELS, VOTES, CREMA_D).reasons
    assert set(reasons(ambiguity=f"x{text}".replace("\n", " "))) <= set(REASONS)


def _with(weighing: str) -> str:
    return write_trace(Trace(**{**vars(GOOD), "weighing": weighing}))
