"""Speech metrics: with the clean reference, and without.

All are of one channel. Those defined at 16 kHz (PESQ wide band, ESTOI, LSD, segmental SNR) are computed there; the energy ratios
at the rate of the files.
"""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np
import scipy.signal
from numpy.typing import NDArray

from domains.speech.resampling import resample
from suite.errors import InputError

Array = NDArray[np.float32]
Metrics = dict[str, float | None]

RATE = 16000
NEEDED_SECONDS = 0.4
"""Shorter recordings have no ESTOI (30 frames) and no PESQ."""


def evaluate(estimate: Array, reference: Array, rate: int, noisy: Array | None = None) -> Metrics:
    """All metrics of an estimate `(n,)`; null where one is not defined (silence, too short, PESQ not installed).

    Args:
        reference: the clean speech, aligned with the estimate.
        noisy: the recording before; tells noise that is left (SI-SIR) from artefacts (SI-SAR).

    Raises:
        InputError: the lengths differ.
    """
    if estimate.shape != reference.shape or (noisy is not None and noisy.shape != reference.shape):
        raise InputError(
            f"the result has {len(estimate)} samples and its reference {len(reference)}; they must be aligned and equally long"
        )
    out: Metrics = {"si_sdr": si_sdr(estimate, reference)}
    if noisy is not None:
        out["si_sir"], out["si_sar"] = energy_ratios(estimate, reference, noisy - reference)
    low, truth = resample(estimate, rate, RATE), resample(reference, rate, RATE)
    out["estoi"], out["pesq"] = estoi(low, truth), pesq(low, truth)
    out["lsd"], out["segmental_snr"] = log_spectral_distance(low, truth), segmental_snr(low, truth)
    return out


def mean_of(rows: list[Metrics]) -> Metrics:
    """The mean of each metric over the rows that have it."""
    out: Metrics = {}
    for key in rows[0]:
        values = [value for row in rows if (value := row[key]) is not None]
        out[key] = float(np.mean(values)) if values else None
    return out


# --- energy ratios ----------------------------------------------------------------------------------------------------


def _decibels(numerator: float, denominator: float) -> float | None:
    if numerator <= 0:
        return None
    return float(10 * np.log10(numerator / max(denominator, 1e-12 * numerator)))


def si_sdr(estimate: Array, reference: Array) -> float | None:
    """Scale-invariant signal-to-distortion ratio, dB (Le Roux et al. 2019, eq. 5), no mean removed; at most 120."""
    s, e = reference.astype(np.float64), estimate.astype(np.float64)
    energy = float(s @ s)
    if energy == 0:
        return None
    target = (e @ s) / energy * s
    return _decibels(float(target @ target), float(np.square(e - target).sum()))


def energy_ratios(estimate: Array, reference: Array, noise: Array) -> tuple[float | None, float | None]:
    """`(SI-SIR, SI-SAR)`, dB: what of the error lies along the noise, and what along neither (Richter et al. 2023)."""
    s, n, e = reference.astype(np.float64), noise.astype(np.float64), estimate.astype(np.float64)
    if not (s @ s > 0 and n @ n > 0):
        return None, None
    target, interference = (e @ s) / (s @ s) * s, (e @ n) / (n @ n) * n
    artefacts = e - target - interference
    energy = float(target @ target)
    return _decibels(energy, float(interference @ interference)), _decibels(energy, float(artefacts @ artefacts))


# --- perception -------------------------------------------------------------------------------------------------------


def estoi(estimate: Array, reference: Array) -> float | None:
    """Extended short-time objective intelligibility at 16 kHz, 0 to 1 (Jensen and Taal 2016), by pystoi."""
    from pystoi import stoi

    if len(reference) < NEEDED_SECONDS * RATE or not np.any(reference):
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = float(stoi(reference.astype(np.float64), estimate.astype(np.float64), RATE, extended=True))
    return None if caught and value <= 1e-5 else value


def pesq(estimate: Array, reference: Array) -> float | None:
    """Wide-band PESQ at 16 kHz, 1.0 to 4.6 (ITU-T P.862.2), by the optional package pesq; null without it."""
    if importlib.util.find_spec("pesq") is None or len(reference) < NEEDED_SECONDS * RATE:
        return None
    from pesq import PesqError
    from pesq import pesq as score

    if not (np.any(reference) and np.any(estimate)):
        return None
    value = score(RATE, reference, estimate, "wb", on_error=PesqError.RETURN_VALUES)
    return None if value < 0 else float(value)


def _powers(x: Array) -> NDArray[np.float64]:
    _, _, spectrum = scipy.signal.stft(x.astype(np.float64), RATE, "hann", 512, 256, boundary=None)
    powers: NDArray[np.float64] = np.abs(spectrum) ** 2
    return powers


def log_spectral_distance(estimate: Array, reference: Array) -> float | None:
    """Root mean square over frequency of the log spectra's difference, dB, mean over frames (Gray and Markel 1976).

    Powers 60 dB below the reference's largest count as that much.
    """
    if len(reference) < 512 or not np.any(reference):
        return None
    truth = _powers(reference)
    least = truth.max() * 1e-6
    gap = 10 * np.log10(np.maximum(_powers(estimate), least) / np.maximum(truth, least))
    return float(np.sqrt((gap**2).mean(0)).mean())


def segmental_snr(estimate: Array, reference: Array) -> float | None:
    """Mean over 32 ms frames of the SNR limited to -10..35 dB (Hansen and Pellom 1998), dB; silent frames left out."""
    whole = len(reference) // 512 * 512
    s = reference[:whole].astype(np.float64).reshape(-1, 512)
    error = s - estimate[:whole].astype(np.float64).reshape(-1, 512)
    energy, loss = (s**2).sum(1), (error**2).sum(1)
    heard = energy > 1e-5 * (energy.max() if len(energy) else 0.0)
    if not heard.any():
        return None
    ratios = 10 * np.log10(energy[heard] / np.maximum(loss[heard], 1e-12 * energy[heard]))
    return float(np.clip(ratios, -10, 35).mean())


# --- rooms ------------------------------------------------------------------------------------------------------------


def direct_to_reverberant(response: Array, rate: int) -> float | None:
    """Energy within 2.5 ms of a room response's peak over all after it, dB (Zahorik 2002); null without a tail."""
    peak, half = int(np.abs(response).argmax()), max(1, round(2.5e-3 * rate))
    energy = np.square(response, dtype=np.float64)
    direct, tail = energy[max(0, peak - half) : peak + half + 1].sum(), energy[peak + half + 1 :].sum()
    return _decibels(float(direct), float(tail)) if tail > 0 else None


def response_between(source: Array, received: Array) -> Array:
    """The response that leads from one signal to the other `(n,)`, least squares with a ridge; its time 0 is in the middle."""
    count = len(source) + len(received)
    s, e = np.fft.rfft(source, count), np.fft.rfft(received, count)
    power = np.abs(s) ** 2
    response: Array = np.fft.irfft(s.conj() * e / (power + 1e-3 * power.mean()), count).astype(np.float32)
    return np.roll(response, count // 2)


def remaining_reverberation(estimate: Array, reference: Array, rate: int) -> float | None:
    """Direct-to-reverberant ratio, dB, of the response from the dry reference to the estimate, half a second of it.

    What the estimate holds beside the filtered reference (noise, artefacts) counts as reverberation too.
    """
    if not (np.any(estimate) and np.any(reference)):
        return None
    response = response_between(reference, estimate)
    peak = int(np.abs(response).argmax())
    return direct_to_reverberant(response[max(0, peak - rate // 100) : peak + rate // 2], rate)


def reverberation_time(response: Array, rate: int) -> float | None:
    """T60 in seconds: three times the decay from -5 to -25 dB of the backward integral (Schroeder 1965, ISO 3382)."""
    energy = np.square(response, dtype=np.float64)[int(np.abs(response).argmax()) :]
    decay = np.cumsum(energy[::-1])[::-1]
    if len(decay) < 2 or decay[0] <= 0:
        return None
    curve = 10 * np.log10(np.maximum(decay / decay[0], 1e-30))
    inside = np.flatnonzero((curve <= -5) & (curve >= -25))
    if len(inside) < 2 or curve[-1] > -25:
        return None
    slope = np.polyfit(inside / rate, curve[inside], 1)[0]
    return float(-60 / slope) if slope < 0 else None
