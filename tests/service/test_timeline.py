import pytest
from prometheus_client import REGISTRY

from service.telemetry.timeline import Timeline


def test_a_stage_adds_up_and_spans_from_its_first_begin_to_its_last_end() -> None:
    times = Timeline(started=100.0)
    times.add("encode", 103.0, 104.0)
    times.add("encode", 101.0, 103.5)
    assert times.stages == {"encode": 3.5}
    assert times.spans == {"encode": (101.0, 104.0)}


def test_the_first_token_of_several_generations_counts_from_the_first_byte_and_the_last() -> None:
    times = Timeline(started=100.0, uploaded=102.0)
    times.first_token(105.0)
    times.first_token(109.0)
    assert times.stages == {"ttft": 5.0, "ttft_after_upload": 3.0}


def test_a_request_without_a_body_has_uploaded_at_once() -> None:
    times = Timeline(started=100.0)
    times.first_token(105.0)
    assert times.stages["ttft_after_upload"] == 5.0


@pytest.mark.parametrize(("audio_seconds", "more"), [(8.0, 0.25), (0.0, 0.0)])
def test_the_real_time_factor_is_of_the_last_token_and_the_audio(audio_seconds: float, more: float) -> None:
    def factors() -> float:
        return REGISTRY.get_sample_value("blsp_real_time_factor_sum") or 0.0

    before = factors()
    times = Timeline(started=100.0, audio_seconds=audio_seconds)
    times.last_token(101.0)
    times.last_token(102.0)
    times.publish()
    assert factors() - before == pytest.approx(more)
