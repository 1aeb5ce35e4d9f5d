"""The sending side of a node: derived objects to a peer by C-STORE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association

from suite.node.rules import Peer

_TIMEOUT = 60.0
"""Seconds that a peer gets for an answer."""


def send(
    files: Sequence[Path], peer: Peer, calling: str, confirmed: Callable[[Path], None], stopping: Callable[[], bool]
) -> str:
    """Send `files` over one association, and tell of each that the peer has confirmed; `stopping` ends it between two.

    Returns:
        Why it ended early, a sentence without patient data; empty when the peer has them all.
    """
    ae = AE(ae_title=calling)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = _TIMEOUT
    ae.connection_timeout = 15.0
    for sop_class, syntax in sorted({_kind(file) for file in files}):
        ae.add_requested_context(sop_class, list(dict.fromkeys((syntax, str(ImplicitVRLittleEndian)))))
    association = ae.associate(peer.host, peer.port, ae_title=peer.aet)
    if not association.is_established:
        how = "rejected the association" if association.is_rejected else "cannot be reached"
        return f"{peer.aet} at {peer.host}:{peer.port} {how}"
    try:
        for number, file in enumerate(files, 1):
            fault = "was interrupted" if stopping() else _store(association, file)
            if fault:
                return f"{peer.aet} {fault} (object {number} of {len(files)})"
            confirmed(file)
    finally:
        if association.is_established:
            association.release()
    return ""


def _kind(file: Path) -> tuple[str, str]:
    meta = dcmread(file, stop_before_pixels=True, specific_tags=["SOPInstanceUID"]).file_meta
    return str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)


def _store(association: Association, file: Path) -> str:
    """Send one object; why the peer does not have it, or nothing."""
    if not association.is_established:
        return "ended the association"
    try:
        status = association.send_c_store(dcmread(file))
    except ValueError:  # no presentation context was accepted for it
        return "does not take objects of this kind"
    if "Status" not in status:
        return "ended the connection or did not answer in time"
    # 0xB000, 0xB006, 0xB007: stored, with a warning (PS3.4 B.2.3)
    return "" if status.Status in (0x0000, 0xB000, 0xB006, 0xB007) else f"answered with status 0x{status.Status:04X}"
