package wire

// A request's body; behind it a write's payload.
//
//	0  op u8             16  number u64     40  epoch u64
//	1  0 u8              24  floor u64      48  offset i64
//	2  flags u16         32  session u64    56  length i64
//	4  0 u32
//	8  tag u64
//
// A reply's body; behind it a read's data, the extents, or the error's message (JSON for moved).
//
//	0  tag u64           16  code u16       20  0 u32
//	8  epoch u64         18  0 u16
const (
	requestSize = 64
	replySize   = 24
	extentSize  = 24 // offset i64, length i64, type u8, 0 × 7
)
