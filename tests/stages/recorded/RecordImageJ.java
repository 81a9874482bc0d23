// What ImageJ writes as ROIs, and which pixels it fills for each; recorded with ImageJ 1.53t (public domain):
//   java -Djava.awt.headless=true -cp ij.jar RecordImageJ.java FOLDER
// writes imagej_RoiSet.zip and imagej_masks.tif, one page for each ROI; the pages here are packed.

import ij.*;
import ij.gui.*;
import ij.io.*;
import ij.process.*;
import java.io.*;
import java.util.*;
import java.util.zip.*;

public class RecordImageJ {
    static List<Roi> rois = new ArrayList<>();

    static void add(String name, Roi roi) {
        roi.setName(name);
        rois.add(roi);
    }

    static Roi polygon(int type, int... xy) {
        int[] x = new int[xy.length / 2], y = new int[xy.length / 2];
        for (int k = 0; k < x.length; k++) { x[k] = xy[2 * k]; y[k] = xy[2 * k + 1]; }
        return new PolygonRoi(x, y, x.length, type);
    }

    public static void main(String[] folder) throws Exception {
        int width = 120, height = 100;
        add("polygon", polygon(Roi.POLYGON, 10, 10, 40, 14, 30, 38, 12, 30));
        add("diagonal", polygon(Roi.POLYGON, 10, 40, 20, 40, 20, 50));
        add("neighbour", polygon(Roi.POLYGON, 10, 40, 20, 50, 10, 50));
        add("freehand", polygon(Roi.FREEROI, 50, 10, 55, 8, 62, 12, 66, 20, 60, 28, 52, 27, 47, 20, 48, 14));
        add("concave", polygon(Roi.POLYGON, 70, 10, 95, 10, 75, 25, 95, 40, 70, 40, 65, 25));
        add("crossed", polygon(Roi.POLYGON, 70, 50, 95, 70, 95, 50, 70, 70));
        add("subpixel", new PolygonRoi(new float[]{20.3f, 41.7f, 38.2f, 15.9f},
                                       new float[]{60.4f, 58.1f, 81.6f, 77.7f}, 4, Roi.POLYGON));
        add("outside", polygon(Roi.POLYGON, 100, 70, 140, 75, 130, 95, 105, 120));
        add("oval", new OvalRoi(50, 40, 13, 22));
        add("oval even", new OvalRoi(50, 66, 20, 10));
        add("small oval", new OvalRoi(5, 5, 3, 3));
        add("rectangle", new Roi(2, 80, 11, 7));
        add("ellipse", new EllipseRoi(80, 75, 110, 60, 0.5));
        ByteProcessor ring = new ByteProcessor(width, height);
        ring.setValue(255);
        ring.setRoi(new OvalRoi(55, 80, 20, 14));
        ring.fill(ring.getMask());
        ring.setValue(0);
        ring.setRoi(new OvalRoi(61, 84, 6, 5));
        ring.fill(ring.getMask());
        Wand wand = new Wand(ring);
        wand.autoOutline(57, 87, 255, 255, Wand.EIGHT_CONNECTED);
        add("traced", new PolygonRoi(wand.xpoints, wand.ypoints, wand.npoints, Roi.TRACED_ROI));
        add("hole", new ShapeRoi(new Roi(80, 80, 30, 15)).not(new ShapeRoi(new Roi(88, 84, 10, 6))));
        add("two parts", new ShapeRoi(new OvalRoi(20, 85, 8, 8)).or(new ShapeRoi(new OvalRoi(32, 85, 9, 8))));

        ImageStack masks = new ImageStack(width, height);
        ZipOutputStream zip = new ZipOutputStream(new FileOutputStream(folder[0] + "/imagej_RoiSet.zip"));
        DataOutputStream out = new DataOutputStream(new BufferedOutputStream(zip));
        RoiEncoder encoder = new RoiEncoder(out);
        for (Roi roi : rois) {
            ByteProcessor mask = new ByteProcessor(width, height);
            mask.setValue(1);
            mask.setRoi(roi);
            mask.fill(mask.getMask());
            masks.addSlice(roi.getName(), mask);
            zip.putNextEntry(new ZipEntry(roi.getName() + ".roi"));
            encoder.write(roi);
            out.flush();
        }
        out.close();
        new FileSaver(new ImagePlus("masks", masks)).saveAsTiffStack(folder[0] + "/imagej_masks.tif");
    }
}
