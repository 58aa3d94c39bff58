"""RTAB-Map: RGB-D frames from an image, its camera_info and a registered depth image.

introlab/rtabmap_ros aec4f91.
"""

from consumers.rules import Live, rule

SYNC = 'rtabmap_ros 1792862 rtabmap_sync/src/impl/CommonDataSubscriberDepth.cpp'
MSG = 'rtabmap_ros aec4f91 rtabmap_conversions/src/MsgConversion.cpp'
DEPTHS = ('32FC1', '16UC1', 'mono16')
COLOURS = (
    '8UC1', 'mono8', 'mono16', 'bgr8', 'rgb8', 'bgra8', 'rgba8', 'bayer_grbg8', 'bayer_rggb8'
)  # fmt: skip


@rule(f'{MSG}:2113-2118 convertRGBDMsgs')
def sizes_have_one_ratio(live: Live) -> str | None:
    across, down = live.rgb.width // live.depth.width, live.rgb.height // live.depth.height
    if across != down:
        return f'stops the process: RGB is {across} times as wide and {down} times as high'
    return None


@rule(f'{MSG}:2147-2157 convertRGBDMsgs')
def depth_encoding_is_known(live: Live) -> str | None:
    if live.depth.encoding not in DEPTHS:
        return f'drops the frame: depth is {live.depth.encoding}'
    return None


@rule(f'{MSG}:2125-2138 convertRGBDMsgs')
def colour_encoding_is_known(live: Live) -> str | None:
    if live.rgb.encoding not in COLOURS:
        return f'drops the frame: RGB is {live.rgb.encoding}'
    return None


@rule(f'{MSG}:2183,2194-2195 convertRGBDMsgs')
def depth_has_the_stamp_of_the_image(live: Live) -> str | None:
    if live.depth.header.stamp != live.rgb.header.stamp:
        return 'takes the pose of the stamp of the depth for an image of another moment'
    return None


@rule(f'{SYNC} depthCallback; message_filters ExactTime by approx_sync: false of the sample')
def camera_info_has_the_stamp_of_the_image(live: Live) -> str | None:
    if live.rgb_info.header.stamp != live.rgb.header.stamp:
        return 'waits for ever: image, depth and camera_info are paired by equal stamps'
    return None


@rule(f'{MSG}:2194-2195 convertRGBDMsgs')
def depth_has_the_frame_of_the_image(live: Live) -> str | None:
    if live.depth.header.frame_id != live.rgb.header.frame_id:
        return 'puts the depth into the frame of the RGB image without a word'
    return None
