"""One-line definitions of the metrics, written into metrics.json beside the numbers."""

DEFINITIONS = {
    "psnr": "in dB, of images clipped to hu_window and scaled to [0, 1], data range 1; at most 100",
    "ssim": "SSIM (Wang 2004) of the images of psnr; 3D Gaussian window of 11 voxels, sigma 1.5, "
    "K1 0.01, K2 0.03; voxels whose window lies inside the image",
    "ms_ssim": "MS-SSIM (Wang 2003) of the images of psnr; 5 scales above 160 voxels per axis",
    "lpips": "LPIPS (Zhang 2018, AlexNet) of the images of psnr, mean over each plane's slices and "
    "over the planes with slices of at least 31 voxels a side",
    "ssim_as_published, ms_ssim_as_published": "as the published code computes them: a Gaussian "
    "window of 4 voxels, sigma 1.5; always 5 scales, each without the odd last voxel of the one "
    "before",
    "lpips_as_published": "as there: sum over three planes, of images in [0, 1] where the network "
    "expects [-1, 1]; over all slices, of which the published code draws half",
    "frechet_PLANE_as_published": "as there: squared Frechet distance (FID) of the features of all "
    "slices of the images of psnr, at their own size and not scaled for the network",
    "mae_hu": "mean absolute error in HU of images clipped to hu_window",
    "_classK": "suffix: the metric inside class K of the label map",
    "vessel_match": "agreement of the profile across each centreline point (contrast to the "
    "surroundings, radius) with the real CT's, half of it the lowest of the points nearby on the "
    "branch; 1: the real CT, 0: another patient, noise, a constant, blur, vessels erased",
    "vessel_match_left_out": "share of the centreline points without a vessel_match: the real CT "
    "has less than 30 HU of contrast there",
    "centreline_in_range": "share of the condition's centreline points with HU in lumen_range",
    "centreline_covered": "share of the condition's centreline points that lie inside the CT",
    "lumen_hu": "mean HU of the centreline points",
    "contrast_hu": "mean HU difference of the centreline points and the median of a shell around "
    "each, 1.5 to 3 radii plus one voxel away",
    "dice": "Dice of the vessels segmented in the CT alone and the vessels of the label map",
    "cldice": "clDice (Shit 2021) of the masks of dice, with hard skeletons",
    "centreline_recall": "share of the label map's skeleton within one voxel of the segmented one",
    "centreline_precision": "share of the segmented skeleton within one voxel of the label map's",
    "betti0_error": "absolute difference of the numbers of components, 26 neighbors",
    "betti1_error": "absolute difference of the numbers of loops",
    "radius_error_mm": "mean absolute difference of radii, at the label map's centreline points "
    "with a segmented one within 1.5 mm",
    "radius_bias_mm": "mean difference of radii at these points; negative: vessels are too thin",
    "radius_ratio": "mean ratio of segmented and true radius at these points",
    "false_vessel_ml": "volume of the vessels segmented in a CT whose label map has none",
    "segmenter_*": "metrics from dice to false_vessel_ml of the vessels of a trained segmenter",
    "vesselness": "mean Frangi response inside the label map's vessels, scales 0.8 to 2.4 mm",
    "vesselness_shell": "mean Frangi response in a shell from 1 voxel to 1 voxel + 3 mm outside",
    "vesselness_contrast": "vesselness minus vesselness_shell",
    "vesselness_auc": "share of pairs of a vessel and a shell voxel where the vessel's is larger",
    "frechet": "squared Frechet distance of slice features to the real CTs, mean of three planes",
    "frechet_excess": "squared Frechet distance without the bias of small sets: 0 is perfect",
    "precision, recall": "share of synthetic slices near real ones in feature space; share of real "
    "slices near synthetic ones",
    "diversity_ms_ssim": "MS-SSIM between samples of one label map; 1: no diversity",
    "nearest_training_*, copied": "distance to the nearest training CT; share of copied CTs",
    "validity": "whether the features rank levels of blur, noise and erased vessels",
    "evaluations, seconds": "network evaluations and seconds for one volume, from its sidecar",
    "floor": "negative control: the score of another patient's real CT in place of the image; for "
    "sets of images, one half of the real CTs against the other half",
    "_lt1.5mm, _1.5to3mm, _gt3mm": "calibre: radius of the lumen in the label map",
    "STAT": "mean, std (divisor n - 1) and ci95 over n cases, whose samples are averaged first; "
    "ci95 is Student's t, clipped to the metric's range, and a bootstrap for sets of images",
}
