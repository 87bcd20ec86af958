"""Structured reports: of detection programs, of measurements, and plain ones; the box of what was drawn, or the reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ComprehensiveSRStorage, MammographyCADSRStorage, generate_uid

from tests.data.dicom.annotating import DRAWN, MADE, MASS, annotation, drawn_mammogram, item, marked, reference

IMAGE = drawn_mammogram()
OTHER_VIEW = drawn_mammogram(1)
TOP, LEFT, BOTTOM, RIGHT = DRAWN
SQUARE = [LEFT, TOP, RIGHT, TOP, RIGHT, BOTTOM, LEFT, BOTTOM, LEFT, TOP]
CIRCLE = [10.0, 10.0, 10.0, 14.0]
CIRCLED = (6, 6, 14, 14)
CLUSTER = Code("F-01775", "SRT", "Calcification Cluster")
MASS_OF_OLD = Code("F-01791", "SRT", "Mammographic breast mass")
MASS_OF_NOW = Code("129788004", "SCT", "Mammographic breast mass")


def code(value: str, scheme: str = "DCM", meaning: str = "word") -> Dataset:
    return item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def content(kind: str, name: str, relation: str = "CONTAINS", inside: Sequence[Dataset] = (), **more: Any) -> Dataset:
    made = item(ValueType=kind, RelationshipType=relation, ConceptNameCodeSequence=[code(name)], **more)
    if inside:
        made.ContentSequence = list(inside)
    return made


def picture(image: Dataset, relation: str = "CONTAINS") -> Dataset:
    return content("IMAGE", "111027", relation, ReferencedSOPSequence=[reference(image)])


def by_reference(*path: int) -> Dataset:
    """PS3.3, C.17.3.2.5: an item elsewhere in the tree."""
    return item(RelationshipType="SELECTED FROM", ReferencedContentItemIdentifier=list(path))


def placed(name: str, kind: str, data: Sequence[float], at: Dataset | None, relation: str = "HAS PROPERTIES") -> Dataset:
    return content("SCOORD", name, relation, [at] if at is not None else (), GraphicType=kind, GraphicData=list(data))


def finding(what: Code, drawn: Sequence[Dataset], *inside: Dataset, shown: str = "111150") -> Dataset:
    """TID 4006: what it is, whether it is to be shown, and where it lies."""
    rendering = content("CODE", "111056", "HAS CONCEPT MOD", ConceptCodeSequence=[code(shown)])
    about = {"ConceptCodeSequence": [code(what.value, what.scheme_designator, what.meaning)]}
    return content("CODE", "111059", "CONTAINS", [rendering, *drawn, *inside], **about)


def outlined(kind: str, data: Sequence[float], at: Dataset) -> list[Dataset]:
    return [placed("111010", "POINT", data[:2], at), placed("111041", kind, data, at)]


def detection(*findings: Dataset) -> Dataset:
    """TID 4000: a library of two images, at 1.1.1 and 1.1.2, and what the program found in them."""
    library = content("CONTAINER", "111028", inside=[picture(OTHER_VIEW), picture(IMAGE)])
    impression = content("CONTAINER", "111034", "INFERRED FROM", findings)
    summary = content("CODE", "111017", "CONTAINS", [impression], ConceptCodeSequence=[code("111242")])
    made = annotation(MammographyCADSRStorage, "SR", ValueType="CONTAINER", ContentSequence=[library, summary])
    made.ConceptNameCodeSequence = [code("111036")]
    return made


HERE, THERE = by_reference(1, 1, 2), by_reference(1, 1, 1)


@pytest.mark.parametrize("what", [MASS_OF_OLD, MASS_OF_NOW, Code("111459", "DCM", "Mass with calcifications")])
@pytest.mark.parametrize(
    ("kind", "data", "box"),
    [
        ("POLYLINE", SQUARE, DRAWN),
        ("POLYLINE", SQUARE[:-2], DRAWN),
        ("CIRCLE", CIRCLE, CIRCLED),
        ("ELLIPSE", [28, 30, 28, 58, 12, 44, 44, 44], DRAWN),
    ],
)
def test_dicom_detection_of_a_mass_gives_the_box_of_its_outline(what, kind, data, box):
    made = detection(finding(what, outlined(kind, data, HERE)))
    assert marked(made, IMAGE) == box
    assert marked(made, OTHER_VIEW) == "mask_mismatch"


def test_dicom_detections_in_other_views_and_of_other_kinds_are_passed_over():
    calcification = finding(Code("F-01776", "SRT", "Individual Calcification"), outlined("CIRCLE", [50, 80, 50, 82], HERE))
    cluster = finding(CLUSTER, outlined("CIRCLE", [50, 80, 50, 85], HERE), calcification)
    elsewhere = finding(MASS_OF_OLD, outlined("CIRCLE", CIRCLE, THERE))
    made = detection(elsewhere, cluster, finding(MASS_OF_OLD, outlined("POLYLINE", SQUARE, HERE)))
    assert marked(made, IMAGE) == marked(made, IMAGE, "3") == DRAWN
    assert marked(made, OTHER_VIEW) == CIRCLED
    assert marked(made, IMAGE, "1") == "other_finding"
    assert marked(made, IMAGE, "4") == "no_lesion"
    assert marked(detection(cluster), IMAGE) == "other_finding"


def test_dicom_detections_that_are_not_to_be_shown_are_not_taken_unless_they_are_chosen():
    # PS3.16, CID 6034: 111152 is "Not for Presentation".
    hidden = finding(MASS_OF_OLD, outlined("CIRCLE", CIRCLE, HERE), shown="111152")
    made = detection(hidden, finding(MASS_OF_OLD, outlined("POLYLINE", SQUARE, HERE)))
    assert marked(made, IMAGE) == DRAWN
    assert marked(made, IMAGE, "1") == CIRCLED
    assert marked(detection(hidden), IMAGE) == "no_lesion"


def test_dicom_detection_of_two_masses_needs_a_choice():
    made = detection(*(finding(MASS_OF_OLD, outlined(*one, HERE)) for one in (("POLYLINE", SQUARE), ("CIRCLE", CIRCLE))))
    assert marked(made, IMAGE) == "several_regions"
    assert (marked(made, IMAGE, "1"), marked(made, IMAGE, "2")) == (DRAWN, CIRCLED)


def test_dicom_detection_with_a_centre_alone_has_no_extent():
    made = detection(finding(MASS_OF_OLD, outlined("POLYLINE", SQUARE, HERE)[:1]))
    assert marked(made, IMAGE) == "unreadable_annotation"


def test_dicom_detection_in_the_source_of_a_mammogram_is_its_own_where_every_pixel_is_in_its_place():
    made = detection(finding(MASS_OF_OLD, outlined("POLYLINE", SQUARE, THERE)))
    source = reference(OTHER_VIEW)
    source.SpatialLocationsPreserved = "YES"
    assert marked(made, drawn_mammogram(2, SourceImageSequence=[source])) == DRAWN


def report(*inside: Dataset, evidence: Sequence[Dataset] = ()) -> Dataset:
    made = annotation(ComprehensiveSRStorage, "SR", ValueType="CONTAINER", ContentSequence=list(inside))
    series = item(SeriesInstanceUID="1.2.3", ReferencedSOPSequence=[reference(image) for image in evidence])
    study = item(StudyInstanceUID="1.2.3", ReferencedSeriesSequence=[series])
    made.CurrentRequestedProcedureEvidenceSequence = [study] if evidence else []
    made.ConceptNameCodeSequence = [code("126000")]
    return made


def measured(*drawn: Dataset, name: str = "", what: Code | None = None) -> Dataset:
    inside = [content("TEXT", "112039", "HAS OBS CONTEXT", TextValue=name)] if name else []
    if what is not None:
        inside.append(content("CODE", "121071", ConceptCodeSequence=[code(what.value, what.scheme_designator)]))
    return content("CONTAINER", "125007", inside=[*inside, *drawn])


def number(drawn: Dataset, name: str = "42798000") -> Dataset:
    """A measurement, and what it was taken in."""
    return content("NUM", name, inside=[drawn])


def test_dicom_measurements_are_chosen_by_number_or_tracking_identifier():
    first = measured(placed("111030", "CIRCLE", CIRCLE, picture(IMAGE, "SELECTED FROM"), "CONTAINS"), name="one")
    second = measured(placed("111030", "POLYLINE", SQUARE, picture(IMAGE, "SELECTED FROM"), "CONTAINS"), name="two", what=MASS)
    elsewhere = measured(placed("111030", "CIRCLE", CIRCLE, picture(OTHER_VIEW, "SELECTED FROM"), "CONTAINS"), name="two")
    made = report(elsewhere, first, second)
    assert marked(made, IMAGE) == "several_regions"
    # The meaning of a finding is its label in some viewers.
    assert marked(made, IMAGE, "word") == marked(made, IMAGE, "two") == marked(made, IMAGE, "2") == DRAWN
    assert marked(made, OTHER_VIEW) == CIRCLED
    assert marked(made, drawn_mammogram(2)) == "mask_mismatch"


def test_dicom_measurement_of_calcifications_is_another_finding():
    drawn = placed("111030", "POLYLINE", SQUARE, picture(IMAGE, "SELECTED FROM"), "CONTAINS")
    assert marked(report(measured(drawn, what=CLUSTER)), IMAGE) == "other_finding"


def test_dicom_diameters_beside_an_outline_are_no_regions():
    at = picture(IMAGE, "SELECTED FROM")
    diameter = number(placed("121055", "POLYLINE", [LEFT, TOP, RIGHT, BOTTOM], at, "INFERRED FROM"))
    area = number(placed("121055", "POLYLINE", SQUARE, at, "INFERRED FROM"))
    # One group with an area, taken twice, and a diameter; another with a diameter alone.
    made = report(measured(area, area, diameter, name="mass"), measured(diameter, name="distance"))
    assert marked(made, IMAGE) == marked(made, IMAGE, "mass") == DRAWN
    assert marked(made, IMAGE, "distance") == "unreadable_annotation"
    assert marked(report(measured(diameter)), IMAGE) == "unreadable_annotation"


def test_dicom_report_of_a_program_that_follows_no_template_is_read():
    at = picture(IMAGE, "SELECTED FROM")
    assert marked(report(number(placed("121055", "POLYLINE", SQUARE, at, "INFERRED FROM"))), IMAGE) == DRAWN
    assert marked(report(placed("111030", "MULTIPOINT", SQUARE[:-2], at, "CONTAINS")), IMAGE) == DRAWN
    assert marked(report(placed("111030", "MULTIPOINT", SQUARE[:4], at, "CONTAINS")), IMAGE) == "unreadable_annotation"
    assert marked(report(placed("111030", "POINT", SQUARE[:2], at, "CONTAINS")), IMAGE) == "unreadable_annotation"


def test_dicom_report_that_names_its_only_image_once_is_of_it():
    drawn = placed("111030", "POLYLINE", SQUARE, None, "CONTAINS")
    assert marked(report(measured(drawn), evidence=[IMAGE]), IMAGE) == DRAWN
    assert marked(report(measured(drawn), evidence=[OTHER_VIEW]), IMAGE) == "mask_mismatch"
    # On which of the two?
    assert marked(report(measured(drawn), evidence=[IMAGE, OTHER_VIEW]), IMAGE) == "unreadable_annotation"
    assert marked(report(measured(drawn)), IMAGE) == "unreadable_annotation"


def test_dicom_report_without_coordinates_marks_nothing():
    assert marked(report(measured(name="mass")), IMAGE) == "no_lesion"
    assert marked(report(evidence=[OTHER_VIEW]), IMAGE) == "mask_mismatch"


def test_dicom_report_with_coordinates_in_space_is_unreadable():
    space = content("SCOORD3D", "111030", GraphicType="POLYGON", GraphicData=[1.0, 2.0, 3.0] * 4)
    space.ContentSequence = [picture(IMAGE, "SELECTED FROM")]
    assert marked(report(measured(space)), IMAGE) == "unreadable_annotation"


def test_dicom_report_that_refers_to_itself_ends():
    looped = measured(placed("111030", "POLYLINE", SQUARE, by_reference(1), "CONTAINS"))
    assert marked(report(looped), IMAGE) == "unreadable_annotation"


def test_dicom_report_that_highdicom_wrote_gives_the_box():
    observer = hd.sr.ObservationContext(
        observer_person_context=hd.sr.ObserverContext(
            observer_type=codes.DCM.Person,
            observer_identifying_attributes=hd.sr.PersonObserverIdentifyingAttributes(name="Doe^John"),
        )
    )
    source = hd.sr.SourceImageForRegion(
        referenced_sop_class_uid=IMAGE.SOPClassUID, referenced_sop_instance_uid=IMAGE.SOPInstanceUID
    )
    region = hd.sr.ImageRegion(
        graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
        graphic_data=np.reshape(np.array(SQUARE, np.float64), (-1, 2)),
        source_image=source,
    )
    group = hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=generate_uid(entropy_srcs=["track"]), identifier="lesion 7"),
        referenced_region=region,
        finding_type=MASS,
    )
    made = hd.sr.ComprehensiveSR(
        evidence=[IMAGE],
        content=hd.sr.MeasurementReport(
            observation_context=observer, procedure_reported=codes.LN.CTUnspecifiedBodyRegion, imaging_measurements=[group]
        )[0],
        sop_instance_uid=generate_uid(entropy_srcs=["report"]),
        is_complete=False,
        is_final=False,
        is_verified=False,
        **MADE,
    )
    assert marked(made, IMAGE) == marked(made, IMAGE, "Lesion 7") == DRAWN
