"""Words that names are made of: short, neutral, easy to read out. A test holds each of them against real filter lists."""

WORDS = tuple(
    """
    acorn agate alder almond alpine amber anchor apple apricot arbor ash aspen aster autumn avocet azure
    badger balsam bamboo barley basalt basil bay beech birch bison blossom bluebell boulder bramble brass briar brick bridge brook
    canyon caramel cedar cello chalk cherry chestnut cinder clay cliff clover cobalt comet copper coral cotton cove crane creek
    crystal curlew cypress
    dahlia daisy dale damson dawn delta dew dingle dune dusk
    eagle ebony eider elder elm ember emerald estuary
    falcon fern fig finch fir fjord flax flint forest fox frost
    garnet ginger glacier glade glen gorse granite grove gull
    harbor hare harvest hawthorn hazel heath heather hedge heron hickory hill holly honey horizon
    indigo inlet iris island ivory ivy
    jade jasmine jasper juniper
    kelp kernel kestrel kite
    lagoon lake larch lark laurel lava lavender leaf ledge lemon lichen lilac lily lime linen lotus lupin lynx
    magnolia maple marble marigold marsh marten meadow mesa mill mint mist moor moss moth mulberry myrtle
    nectar nettle nutmeg
    oak oasis oat ocean ochre olive onyx opal orchard orchid oriole osprey otter owl
    pasture peach pear pebble pepper petal pier pine plain plover plum pond poplar poppy prairie puffin
    quail quarry quartz quill quince
    rain raven reed reef ridge river robin rose rosemary rowan ruby rush rye
    saffron sage sand sapphire sequoia shale shell shore sienna silver sky slate snow sorrel sparrow spring spruce star stone
    stork straw stream summit swallow swan sycamore
    tarn teak teal terrace thicket thistle thrush thyme tidal timber topaz tulip tundra turnip
    umber
    vale valley vanilla velvet verbena violet
    walnut warbler water wave weaver wheat wicker willow winter wolf wren
    yarrow yew zephyr zinnia
    """.split()
)
