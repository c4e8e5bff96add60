"""Label maps of other programs and data sets, known by their values: a proposed data.label_map.

The values are those of TotalSegmentator's task total, versions 1 and 2 (Wasserthal et al. 2023),
and of MM-WHS (Zhuang et al. 2019). Label maps of the coronaries alone, with one value (ImageCAS,
ASOCA) or one a segment or branch, are known by their small volume.
"""

from tubesynth.volume.classes import NINE_CLASSES, LabelScheme

CHAMBERS = tuple(NINE_CLASSES.sources[name][0] for name in NINE_CLASSES.names[1:6])
PULMONARY_ARTERY = "pulmonary_artery"
LARGEST_TREE_ML = NINE_CLASSES.plausible_ml["coronary arteries"][1]
# {name: ({value: structure}, two values of every scan of the heart, the highest value)}
SCHEMES = {
    "MM-WHS": (
        {
            **dict(zip((205, 420, 500, 550, 600), CHAMBERS, strict=True)),
            820: "aorta",
            850: PULMONARY_ARTERY,
        },
        {205, 500},
        850,
    ),
    "TotalSegmentator 1": (
        {
            7: "aorta",
            **dict(zip((44, 45, 46, 47, 48), CHAMBERS, strict=True)),
            49: PULMONARY_ARTERY,
        },
        {44, 46},
        104,
    ),
    "TotalSegmentator 2": ({51: "heart", 52: "aorta", 53: "pulmonary_vein"}, {51, 52}, 117),
}


def propose(
    volumes_ml: list[dict[int, float]], scheme: LabelScheme
) -> tuple[str, dict[int, int]] | None:
    """(name of the other scheme, data.label_map) for the volumes of the values of each label map.

    None where the values are plausible as classes, or the scheme is not known.
    """
    values = sorted(set().union(*volumes_ml))
    for name, (structures, marks, highest) in SCHEMES.items():
        if marks <= set(values) and values[-1] <= highest:
            classes = {value: scheme.class_of(structures.get(value, "")) for value in values}
            named = {value: label for value, label in classes.items() if label}
            return (f"those of {name}", named) if named else None
    limits = scheme.plausible_range_ml(scheme.vessel)
    largest = LARGEST_TREE_ML if limits is None else limits[1]
    is_small = all(sum(each.values()) <= largest for each in volumes_ml)
    if not is_small or values == [scheme.vessel] or _plausible(volumes_ml, scheme):
        return None
    name = "those of ImageCAS or ASOCA" if values == [1] else "coronary segments"
    return name, dict.fromkeys(values, scheme.vessel)


def _plausible(volumes_ml: list[dict[int, float]], scheme: LabelScheme) -> bool:
    """Whether the values are classes, and one of them has a volume that this class can have."""
    if any(value >= scheme.num_classes for each in volumes_ml for value in each):
        return False
    for each in volumes_ml:
        for value, volume_ml in each.items():
            limits = scheme.plausible_range_ml(value)
            if limits is None or limits[0] <= volume_ml <= limits[1]:
                return True
    return not any(volumes_ml)
