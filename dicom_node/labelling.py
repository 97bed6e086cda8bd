"""What becomes of one series: its report, the sheet beside it, and every image that was left out with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_node.corrections import (
    draw_lost_sheet,
    has_last_word,
    predecessors_among,
    rejections_beside,
    sheet_beside,
    words_on,
)
from dicom_node.ledger import Ledger
from dicom_node.peek import peek
from dicom_node.reading import Reader, remembered
from dicom_node.reports import report as reports
from dicom_node.reports.gate import inspected, passed_sheet
from dicom_node.reports.header import zone_of
from dicom_node.reports.sheet import best_planes, sheet_of
from dicom_node.reports.summary import summary_of
from dicom_node.reports.word import Word, upheld
from dicom_node.settings import Settings
from dicom_node.spool import Spool
from dicom_node.study import FILES_GONE, Instance, Kind, NotLabelled, WrittenReport
from dicom_node.uids import content_of, report_uid, sheet_uid
from labeler.dicom import Read, series_of
from labeler.vocabulary import vocabulary

if TYPE_CHECKING:
    from labeler.label import Labeler
    from labeler.result import SeriesLabels
    from labeler.slices import FloatImage, Skipped

log = structlog.get_logger("labelling")


@dataclass(frozen=True)
class Labelling:
    """The parts that work on a series, all of whose instances every question is about."""

    settings: Settings
    ledger: Ledger
    spool: Spool
    labeler: Labeler
    reader: Reader

    def of(
        self, instances: Sequence[Instance], may_go_on: Callable[[], None]
    ) -> tuple[list[WrittenReport], list[NotLabelled]]:
        """Label one series; its report and sheet (the existing ones when nothing has changed) and what was left out."""
        draw_lost_sheet(self.settings, self.ledger, self.spool, instances[0].study_uid, instances[0].series_uid)
        if known := self.known_of(instances):
            return known + self._unsent_correction(instances), []
        series_uid, content = instances[0].series_uid, _content(instances)
        if any(instance.absent for instance in instances):
            return self._half(instances)
        people = self._people(instances)
        answer, pictures, left_out = self._answer(instances, people, may_go_on)
        in_order = by_path(instances)
        notes = [
            NotLabelled(in_order[item.source.index].sop_instance_uid, series_uid, item.reason.value, item.detail)
            for item in left_out
            if item.source.frame is None
        ]
        if not answer.slices:
            return [], notes
        context = self._context(instances, answer, content, people)
        verdict = reports.comparison_of(answer, context).verdict
        if verdict.agreement == reports.Agreement.DIFFER:
            log.warning("header differs", series_uid=series_uid, peer=instances[0].peer, claimed=verdict.claimed)
        return list(self._written(instances, answer, pictures, context)), notes

    def _written(
        self,
        instances: Sequence[Instance],
        answer: SeriesLabels,
        pictures: dict[str, FloatImage],
        context: reports.Context,
    ) -> Iterator[WrittenReport]:
        """The report on these images, its sheet, and the note on what it supersedes, each where somebody gets it."""
        built = reports.build(answer, context)
        images = {instance.sop_instance_uid for instance in instances}
        data = inspected(reports.encode(built), context.header, images, vocabulary())
        report = WrittenReport(
            sop_instance_uid=str(built.SOPInstanceUID),
            sop_class_uid=str(built.SOPClassUID),
            study_uid=instances[0].study_uid,
            source_series_uid=instances[0].series_uid,
            content=context.content,
            path=self.spool.store_report(built.SOPInstanceUID, data),
            predecessor=context.predecessors[0].sop_instance_uid if context.predecessors else None,
            summary=json.dumps(summary_of(answer, context)),
        )
        rejections = rejections_beside(self.settings, self.ledger, self.spool, report, built)
        yield report
        yield from self._sheet(report, built, answer, pictures, context)
        yield from rejections

    def _unsent_correction(self, instances: Sequence[Instance]) -> list[WrittenReport]:
        """A person's last word on these images, with its sheet and notes, said here when nobody was to get reports."""
        current = self.ledger.issued.current(instances[0].study_uid, instances[0].series_uid)
        if current is None or not self._has_last_word(instances) or not current.path.exists():
            return []
        if self.ledger.deliveries.has(current.sop_instance_uid) or self.ledger.instance(current.sop_instance_uid):
            return []  # it is on its way, or came from PACS
        notes = rejections_beside(self.settings, self.ledger, self.spool, current, dcmread(current.path))
        return [current, *sheet_beside(self.settings, self.ledger, self.spool, current), *notes]

    def report_uid(self, instances: Sequence[Instance]) -> str:
        return self._uid_with(instances, self._people(instances))

    def _uid_with(self, instances: Sequence[Instance], people: Sequence[Word]) -> str:
        upheld = (word.report_uid for word in people)
        return report_uid(instances[0].series_uid, _content(instances), self.labeler.info.fingerprint, *upheld)

    def _people(self, instances: Sequence[Instance]) -> tuple[Word, ...]:
        """Whom the report on these images upholds: all who were heard; or, where the last word is on just these images,
        those whom the report before it upheld, which may have to be made again."""
        first = instances[0]
        people = words_on(self.ledger, first.study_uid, first.series_uid)
        if not people or not self._has_last_word(instances):
            return people
        earlier = (people[:count] for count in range(len(people), -1, -1))
        return next((some for some in earlier if self.ledger.issued.report(self._uid_with(instances, some))), people)

    def _has_last_word(self, instances: Sequence[Instance]) -> bool:
        first = instances[0]
        return has_last_word(self.ledger, first.study_uid, first.series_uid, _content(instances))

    def known_of(self, instances: Sequence[Instance]) -> list[WrittenReport]:
        """The report on just these images and its sheet; nothing where a file is lost: both are made again."""
        uid = self.report_uid(instances)
        report, sheet = self.ledger.issued.report(uid), self.ledger.issued.sheet(sheet_uid(uid))
        if report is None and self._has_last_word(instances):
            return self._reported_on(instances)  # by another model, and since then by a person
        known = [part for part in (report, sheet) if part is not None]
        return known if report is not None and all(part.path.exists() for part in known) else []

    def _reported_on(self, instances: Sequence[Instance]) -> list[WrittenReport]:
        """The first report on exactly these images, by whatever model."""
        wanted = instances[0].series_uid, _content(instances)
        reports = self.ledger.issued.of_study(instances[0].study_uid)
        return [one for one in reports if (one.source_series_uid, one.content) == wanted][:1]

    def _half(self, instances: Sequence[Instance]) -> tuple[list[WrittenReport], list[NotLabelled]]:
        """A series of which files have left the spool: the report on exactly these images, if there is one, stays."""
        if reported := self._reported_on(instances):
            return reported, []
        series_uid, study_uid = instances[0].series_uid, instances[0].study_uid
        gone = sum(bool(instance.absent) for instance in instances)
        told = f"{gone} of {len(instances)} images are gone; push the whole series again"
        log.error(f"not labelled: {FILES_GONE}", study_uid=study_uid, series_uid=series_uid, remedy=told)
        return [], [NotLabelled(i.sop_instance_uid, series_uid, FILES_GONE, told) for i in instances if not i.absent]

    def _sheet(
        self,
        report: WrittenReport,
        built: Dataset,
        answer: SeriesLabels,
        pictures: dict[str, FloatImage],
        context: reports.Context,
    ) -> Iterator[WrittenReport]:
        """The sheet beside a report, drawn where somebody is to get it."""
        if not self.settings.receivers_of_sheets:
            return
        sheet = passed_sheet(sheet_of(built, answer, pictures, context), context.header)
        uid, sop_class = str(sheet.SOPInstanceUID), str(sheet.SOPClassUID)
        path = self.spool.store_report(uid, reports.encode(sheet))
        yield replace(
            report, sop_instance_uid=uid, sop_class_uid=sop_class, path=path, predecessor=None, kind=Kind.SHEET
        )

    def _answer(
        self, instances: Sequence[Instance], people: Sequence[Word], may_go_on: Callable[[], None]
    ) -> tuple[SeriesLabels, dict[str, FloatImage], list[Skipped]]:
        """Labels of one series, as people have verified them where they have; its best planes, and every image left
        out. Files beyond reading stand apart."""

        def checked() -> Iterator[Read]:
            for read in self.reader.read(by_path(instances)):
                may_go_on()
                yield read

        read = series_of(checked())
        left_out = [item for series in read for item in series.skipped]
        series = max(read, key=lambda one: (len(one.stacks), one.series_instance_uid is not None))
        score = remembered(self.labeler, self.reader.planes, instances[0].study_uid, keep=False)
        answer = self.labeler.label(series, lambda _: may_go_on(), score=score)
        if people and answer.slices:
            answer = upheld(answer, people, vocabulary())
        return answer, best_planes(series, answer), left_out

    def _context(
        self, instances: Sequence[Instance], answer: SeriesLabels, content: str, people: tuple[Word, ...]
    ) -> reports.Context:
        first = next(i for i in instances if i.sop_instance_uid == answer.slices[0].source.sop_instance_uid)
        header = peek(first.path)
        finished = datetime.fromtimestamp(max(instance.received_at for instance in instances), zone_of(header) or UTC)
        before = self.ledger.issued.first_study(first.series_uid)
        apart = (first.study_uid,) if before not in ("", first.study_uid) else ()
        context = reports.Context(header, content, finished, upheld=people, apart=apart)
        uid = reports.uid_of(answer, context)
        earlier = self.ledger.issued.earlier(first.study_uid, first.series_uid, uid)
        return replace(context, revision=len(earlier) + 1, predecessors=predecessors_among(self.ledger, earlier))


def by_path(instances: Iterable[Instance]) -> list[Instance]:
    return sorted(instances, key=lambda instance: instance.path)


def _content(instances: Iterable[Instance]) -> str:
    return content_of((instance.sop_instance_uid, instance.digest) for instance in instances)
