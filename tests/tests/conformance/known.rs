//! What Peregrine does not pass, and why. The page shows them like any other; a case that is passed must leave the list.

pub const KNOWN: &[(&str, &str)] = &[
    (
        "partial_checksums_sctp",
        "an SCTP checksum field that the sender left to its card holds nothing (0) that tells it from a wrong one; TCP's and UDP's hold the sum of \
         the pseudo header",
    ),
    (
        "rfc1122_s3_2_1_3_directed_broadcast",
        "a network with `any_remote` takes every unicast sender, and how long the underlay's prefixes are is not known where frames are judged; \
         without `any_remote` only remotes may send",
    ),
];
