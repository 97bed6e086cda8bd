"""A source image's header, made safe to build on: what a report inherits, and what the header claims to show.

PACS stores headers that highdicom refuses (values out of their VR, missing Type 2 attributes, code extensions in the
character set). Here a bad value becomes empty, and what identifies the patient comes through unharmed.
"""

from __future__ import annotations

import re
from copy import copy, deepcopy
from dataclasses import dataclass
from datetime import timedelta, timezone, tzinfo
from enum import StrEnum
from itertools import pairwise
from typing import Any

from highdicom import SpecificCharacterSetValues
from pydicom import config
from pydicom.datadict import dictionary_description, dictionary_has_tag, dictionary_VM, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.valuerep import DA, TM, validate_value

from labeler.vocabulary import Kind, Region, Vocabulary

_KINDS: tuple[Kind, Kind] = ("station", "organ")
_GROUPS = (0x0008, 0x0010, 0x0012, 0x0018, 0x0020, 0x0032, 0x0040)
#: highdicom reads these unguarded; Type 2 in the source's own IOD.
_NEEDED = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
#: Goes by its own rules, or is what the archive files by.
_AS_WRITTEN = {"PatientID", "IssuerOfPatientID", "PatientName", "AccessionNumber", "StudyID", "PatientSex"}
_REPAIRED = {"ProcedureCodeSequence", "OtherPatientIDsSequence"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def safe_header(source: Dataset) -> Dataset:
    """A copy of the descriptive groups without what would break a report: every value that is not of its VR.

    What identifies patient and study stays as it is, since the archive files by it.
    """
    header = Dataset()
    for element in source:
        described = element.tag.group in _GROUPS and element.VR not in ("OB", "OW", "UN")
        own = _in_own_vr(element) if described else None
        if own is not None and (own.keyword in _AS_WRITTEN or own.keyword in _REPAIRED or _is_valid(own)):
            header[own.tag] = own
    for name in _NEEDED:
        if name not in header:
            setattr(header, name, "")
    if header["PatientName"].VM > 1:
        header.PatientName = header.PatientName[0]
    sex = str(header.get("PatientSex") or "").strip().upper()
    header.PatientSex = sex if sex in ("M", "F", "O") else ""
    if header.get("PatientIdentityRemoved") == "YES" and not header.get("DeidentificationMethodCodeSequence"):
        header.DeidentificationMethod = header.get("DeidentificationMethod") or "not stated by the source"
    if zone_of(header) is None:
        header.pop("TimezoneOffsetFromUTC", None)
    _repair(header)
    return header


def _repair(header: Dataset) -> None:
    """Codes of the procedure that a report may carry, and other Patient IDs with the type that they need."""
    codes: Any = header.pop("ProcedureCodeSequence", None)
    others: Any = header.pop("OtherPatientIDsSequence", None)
    if codes and (kept := [code for item in codes.value if (code := _code_of(item)) is not None]):
        header.ProcedureCodeSequence = kept
    if others:
        header.OtherPatientIDsSequence = [_all_in_own_vr(item) for item in others.value]
        for item in header.OtherPatientIDsSequence:
            item.TypeOfPatientID = item.get("TypeOfPatientID") or "TEXT"


def _all_in_own_vr(item: Dataset) -> Dataset:
    written = Dataset()
    written.update({own.tag: own for own in map(_in_own_vr, deepcopy(item)) if own is not None})
    return written


def _in_own_vr(element: DataElement) -> DataElement | None:
    """A copy in the VR of its attribute, which a file may give otherwise; None where its value is none of that VR."""
    vr = _own_vr(element)
    if vr == element.VR:
        return copy(element)
    if "SQ" in (vr, element.VR):
        return None
    value = element.value if isinstance(element.value, MultiValue) else [element.value]
    try:
        return DataElement(element.tag, vr, [str(one) for one in value], config.IGNORE)
    except ValueError:
        return None


def _own_vr(element: DataElement) -> str:
    own = dictionary_VR(element.tag) if dictionary_has_tag(element.tag) else element.VR
    return element.VR if " or " in own else own


def _code_of(item: Dataset) -> Dataset | None:
    """The code with a meaning of at most 64 characters; None where a value of it is missing or not of its VR."""
    code = deepcopy(item)
    if not isinstance(item.get("CodeMeaning"), str) or not item.CodeMeaning:
        return None
    code.CodeMeaning = item.CodeMeaning[:64]
    named = code.get("CodeValue") and code.get("CodingSchemeDesignator")
    told = named or code.get("LongCodeValue") or code.get("URNCodeValue")
    return code if told and all(map(_is_valid, code)) else None


def _is_valid(element: DataElement) -> bool:
    """Is every value, within sequences too, one of its VR and there as often as may be (PS3.5 6.2)?"""
    if _own_vr(element) != element.VR:
        return False
    if element.VR == "SQ":
        return all(_is_valid(inner) for item in element.value for inner in item)
    values = element.value if isinstance(element.value, MultiValue) else [element.value]
    if len(values) > 1 and dictionary_has_tag(element.tag) and dictionary_VM(element.tag) == "1":
        return False
    return all(_fits(element.VR, value) for value in values)


def _fits(vr: str, value: Any) -> bool:
    told = "" if value is None else str(value)
    if vr in ("DA", "TM"):
        return _valid_time(vr, told)
    if vr == "UI" or (vr in ("LO", "SH") and _CONTROL.search(told)):
        return vr == "UI"  # its own rules are the gate's
    try:
        validate_value(vr, told if vr in ("DS", "IS", "PN") else value, config.RAISE)
    except ValueError:
        return False
    return True


def _valid_time(vr: str, value: str) -> bool:
    try:
        (DA if vr == "DA" else TM)(value)
    except (ValueError, OverflowError):
        return False
    return "." not in value or vr == "TM"  # dates with points are those of the standard before DICOM


def zone_of(header: Dataset) -> tzinfo | None:
    """The zone in which an object tells its dates and times (PS3.3 C.12.1.1.8); None where it does not say."""
    said = re.fullmatch(r"([+-])(\d\d)(\d\d)", str(header.get("TimezoneOffsetFromUTC") or ""))
    if said is None:
        return None
    ahead = timedelta(hours=int(said[2]), minutes=int(said[3]))
    return timezone(-ahead if said[1] == "-" else ahead) if ahead < timedelta(hours=24) else None


def character_set(source: Dataset) -> str:
    """The source's own single character set, else UTF-8, into which pydicom encodes any text it could read."""
    value = source.get("SpecificCharacterSet")
    if not isinstance(value, str) or value.startswith("ISO 2022"):  # code extensions want several values
        return "ISO_IR 192"
    try:
        SpecificCharacterSetValues(value)
    except ValueError:
        return "ISO_IR 192"
    return value


class Agreement(StrEnum):
    """Header against pixels."""

    AGREE = "agree"
    DIFFER = "DIFFER"
    ABSENT = "header silent"
    UNSURE = "labels silent"


@dataclass(frozen=True)
class Verdict:
    """What an attribute claims, what the labels imply, and whether these agree.

    Attributes:
        claimed: the term, or stations named by a description; never the description's own words.
        keyword: of the attribute.
    """

    claimed: str
    implied: str
    agreement: Agreement
    keyword: str = "BodyPartExamined"


@dataclass(frozen=True)
class Comparison:
    """A header against the labels: Body Part Examined, and whatever else of it names a body part."""

    verdict: Verdict
    others: tuple[Verdict, ...]

    def lines(self) -> list[str]:
        """As a report's summary says it."""
        main = self.verdict
        claimed, implied = main.claimed or "(empty)", main.implied or "none"
        differing = (other for other in self.others if other.agreement == Agreement.DIFFER)
        return [
            f"Header Body Part Examined: {claimed}; pixels: {implied} -> {main.agreement.value}",
            *(f"Header {dictionary_description(o.keyword)}: {o.claimed} -> {o.agreement.value}" for o in differing),
        ]

    def summary(self) -> dict[str, Any]:
        """As the ledger keeps it."""
        main = self.verdict
        return {
            "header": {"claimed": main.claimed, "implied": main.implied, "agreement": main.agreement.value},
            "others": {other.keyword: other.agreement.value for other in self.others},
        }


#: Terms that a header may use for a station or a part of it, beside the station's own (PS3.16 Annex L and older use).
_WITHIN: dict[str, frozenset[str]] = {
    station: frozenset(terms.split())
    for station, terms in {
        "head": (
            "HEAD BRAIN SKULL ORBIT FACE IAC SINUS PSINUS JAW HEADNECK TMJ CEREBELLUM CIRCLEOFWILLIS PITUITARY "
            "SELLA MAXILLA MANDIBLE EYE EAR NOSE MOUTH TONGUE CHEEK SCALP ZYGOMA PAROTID"
        ),
        "neck": (
            "NECK CSPINE THYROID LARYNX HEADNECK NECKCHEST SPINE CTSPINE CAROTID PHARYNX PAROTID SUBMANDIBULAR "
            "TRACHEA ESOPHAGUS"
        ),
        "shoulder": "SHOULDER SCAPULA CLAVICLE AXILLA ACJOINT HUMERUS",
        "chest": (
            "CHEST THORAX LUNG HEART BREAST TSPINE RIB STERNUM SPINE CTSPINE TLSPINE MEDIASTINUM AORTA BRONCHUS "
            "CORONARYARTERY ESOPHAGUS TRACHEA THYMUS AXILLA CLAVICLE SCAPULA"
        ),
        "abdomen": (
            "ABDOMEN LIVER KIDNEY PANCREAS LSPINE SPLEEN SPINE TLSPINE LSSPINE ADRENAL AORTA BILEDUCT GALLBLADDER "
            "STOMACH DUODENUM JEJUNUM ILEUM COLON URETER"
        ),
        "pelvis": (
            "PELVIS HIP PROSTATE SSPINE SIJOINT BLADDER UTERUS SACRUM LSSPINE AORTA ILEUM COLON RECTUM ANUS "
            "URETER URETHRA OVARY CERVIX VAGINA VULVA PENIS SCROTUM TESTIS COCCYX ILIUM BUTTOCK GROIN"
        ),
        "upper_limb": "UPPERLIMB ARM UPPERARM ELBOW FOREARM EXTREMITY HUMERUS",
        "hand": "HAND WRIST FINGER THUMB EXTREMITY",
        "thigh": "THIGH FEMUR LOWERLIMB EXTREMITY LEG UPPERLEG",
        "knee": "KNEE PATELLA LOWERLIMB EXTREMITY",
        "lower_leg": "LOWERLEG LEG CALF TIBIA FIBULA LOWERLIMB EXTREMITY",
        "foot": "FOOT ANKLE TOE HEEL CALCANEUS EXTREMITY LOWERLIMB",
    }.items()
}


#: Free text that often names a body part, and short forms that it uses.
_DESCRIPTIONS = ("ProtocolName", "SeriesDescription", "StudyDescription")
_SHORT = {"ABD": "ABDOMEN", "ABDO": "ABDOMEN", "PELV": "PELVIS", "THX": "THORAX", "CEREBRUM": "BRAIN", "LWS": "LSPINE"}


def compare(source: Dataset, stations: tuple[str, ...], words: Vocabulary) -> Comparison:
    """All that a header says of the body part against the stations that the pixels show."""
    return Comparison(_of_body_part(source, stations, words), _of_others(source, stations, words))


def _of_body_part(source: Dataset, stations: tuple[str, ...], words: Vocabulary) -> Verdict:
    """Body Part Examined of a header against the stations that the pixels show.

    A term agrees when it names one of the stations seen, a part of one, or a combination that shares one with them.
    One that names no body part (`UNKNOWN`, a hospital's own abbreviation) contradicts nothing.
    """
    written = source.get("BodyPartExamined") or ""
    text = ("\\".join(written) if isinstance(written, MultiValue) else str(written)).upper()
    claimed = re.sub(r"[\s_-]", "", text)
    region = words.region(stations) if stations else None
    implied = region.body_part_examined if region else "\\".join(words[s].body_part_examined for s in stations)
    if not stations:
        return Verdict(claimed, implied, Agreement.UNSURE)
    named = _of_text(claimed, words) or _of_text(text, words)
    return Verdict(claimed, implied, _agreement(named, stations) if named else Agreement.ABSENT)


def _of_others(source: Dataset, stations: tuple[str, ...], words: Vocabulary) -> tuple[Verdict, ...]:
    """Anatomic Region Sequence, protocol, series and study description against the labels; silent ones are left out."""
    if not stations:
        return ()
    implied = _of_body_part(source, stations, words).implied
    claims = {"AnatomicRegionSequence": _of_codes(source, words)}
    claims |= {keyword: _of_text(str(source.get(keyword) or ""), words) for keyword in _DESCRIPTIONS}
    return tuple(
        Verdict("\\".join(sorted(named)), implied, _agreement(named, stations), keyword)
        for keyword, named in claims.items()
        if named
    )


def _agreement(named: frozenset[str], stations: tuple[str, ...]) -> Agreement:
    return Agreement.AGREE if named & set(stations) else Agreement.DIFFER


def _of_codes(source: Dataset, words: Vocabulary) -> frozenset[str]:
    """Stations of an Anatomic Region Sequence: a station's or region's own code, or the homes of an organ's."""
    named: set[str] = set()
    regions = source.get("AnatomicRegionSequence")
    for item in regions if isinstance(regions, Sequence) else ():
        key = (str(item.get("CodingSchemeDesignator")), str(item.get("CodeValue")))
        station, organ = (words.of_code(*key, kind) for kind in _KINDS)
        named |= {station.name} if station else set(organ.stations) if organ else set()
        named.update(*(region.stations for region in words.regions if (region.code.scheme, region.code.value) == key))
    return frozenset(named)


def _of_text(text: str, words: Vocabulary) -> frozenset[str]:
    """Stations that a description names, in one word or in two (`C SPINE`)."""
    tokens = [_SHORT.get(token, token) for token in re.findall(r"[A-Z]+", text.upper())]
    terms = {*tokens, *(first + second for first, second in pairwise(tokens))}
    named = {station for station, within in _WITHIN.items() if terms & within}
    return frozenset(named.union(*(_combination(term, words) for term in terms)))


def _combination(term: str, words: Vocabulary) -> frozenset[str]:
    found: Region | None = next((r for r in words.regions if r.body_part_examined == term), None)
    return found.stations if found else frozenset()
