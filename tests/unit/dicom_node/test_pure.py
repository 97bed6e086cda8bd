"""Small pure decisions: completion, pauses, UIDs, transitions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.completion import by_quiet_time
from dicom_node.patience import pause
from dicom_node.study import TRANSITIONS, State
from dicom_node.uids import content_of, derived, fault_of, is_uid, report_series_uid, report_uid


def test_complete_after_the_quiet_time_and_not_before():
    assert not by_quiet_time(100.0, 129.9, 30.0).complete
    verdict = by_quiet_time(100.0, 130.0, 30.0)
    assert verdict.complete
    assert verdict.reason == "no image for 30 s"


def test_the_wait_is_what_is_missing():
    assert by_quiet_time(100.0, 110.0, 30.0).wait == 20.0


def test_a_clock_set_back_completes_nothing():
    assert not by_quiet_time(1000.0, 5.0, 30.0).complete


@given(st.integers(1, 1000), st.floats(1, 600), st.floats(0, 1))
def test_pauses_grow_and_stay_within_bounds(attempt, longest, chance):
    seconds = pause(attempt, longest, lambda: chance)
    assert 0.5 <= seconds <= longest
    assert pause(attempt + 1, longest, lambda: chance) >= seconds


@given(st.lists(st.text(max_size=20), min_size=1, max_size=4))
def test_derived_uids_are_uids_and_depend_on_every_part(parts):
    uid = derived(*parts)
    assert is_uid(uid)
    assert uid == derived(*parts)
    assert uid != derived(*parts, "more")


def test_parts_do_not_run_into_each_other():
    assert derived("ab", "c") != derived("a", "bc")


@given(st.lists(st.tuples(st.text("0123456789.", min_size=1), st.text(min_size=1)), unique=True))
def test_content_does_not_depend_on_the_order_of_arrival(instances):
    assert content_of(instances) == content_of(reversed(instances))


def test_reports_differ_by_series_content_and_model():
    one = report_uid("1.2", "c", "m")
    assert len({one, report_uid("1.3", "c", "m"), report_uid("1.2", "d", "m"), report_uid("1.2", "c", "n")}) == 4
    assert report_series_uid("1.2") != "1.2"


@given(st.text(max_size=80))
def test_whatever_is_called_a_uid_is_safe_as_a_file_name(text):
    if is_uid(text):
        assert len(text) <= 64
        assert set(text) <= set("0123456789.")
        assert ".." not in text
        assert text[0] != "."


def test_every_state_leads_somewhere_and_late_images_reopen_all():
    assert set(TRANSITIONS) == set(State)
    assert all(State.RECEIVING in after for state, after in TRANSITIONS.items() if state != State.RECEIVING)


def test_as_many_receivers_run_as_the_settings_say():
    from dicom_node.processes.node import supervised
    from dicom_node.settings import Settings

    node = supervised(Settings(receivers=3, broker="redis://localhost"), None)
    receiving = {program.name: program.command[3:] for program in node.programs if "receive" in program.command}
    assert receiving == {
        "receive": ("receive",),
        "receive-2": ("receive", "--number", "2"),
        "receive-3": ("receive", "--number", "3"),
    }
    assert len({program.name for program in node.programs}) == len(node.programs)
    assert node.environment["DICOM_NODE_RECEIVERS"] == "3"


@pytest.mark.parametrize(("processors", "receivers"), [(None, 1), (1, 1), (2, 2), (16, 2)])
def test_two_receivers_run_where_nobody_says_and_there_are_two_processors(processors, receivers, monkeypatch):
    from dicom_node.processes.node import receivers_of
    from dicom_node.settings import Settings

    monkeypatch.setattr("os.cpu_count", lambda: processors)
    assert receivers_of(Settings()) == receivers
    assert receivers_of(Settings(receivers=5)) == 5


def test_who_keeps_images_for_ever_is_not_told_that_they_go():
    from dicom_node.desk.orders import what_follows
    from dicom_node.settings import Settings

    told = what_follows(Settings(retention_days=float("inf")), "1.2")
    assert told == "Its images stay (retention_days = inf); `dicom-node retry 1.2` takes it back."
    assert what_follows(Settings(retention_days=7)).startswith("Images go 7 days after the last one came, sooner")


@pytest.mark.parametrize(
    ("uid", "fault"),
    [
        ("1.2.03", ""),
        ("", "absent"),
        ("1.2.x..9", "not of digits and points only"),
        ("Doe^Jane", "not of digits and points only"),
        ("1.2..9", "with a component without digits"),
        ("1.2.", "with a component without digits"),
        ("1" * 65, "longer than 64 characters"),
    ],
)
def test_what_is_wrong_with_a_uid_is_told_without_it(uid: str, fault: str) -> None:
    assert fault_of(uid) == fault
    assert is_uid(uid) is not bool(fault)
