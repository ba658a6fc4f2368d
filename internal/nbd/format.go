package nbd

// Numbers of the NBD protocol (NetworkBlockDevice/nbd, doc/proto.md); all integers are big-endian.

// Magic numbers.
const (
	magicServer     uint64 = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     uint64 = 0x49484156454F5054 // "IHAVEOPT"
	magicOptReply   uint64 = 0x0003e889045565a9
	magicRequest    uint32 = 0x25609513
	magicSimple     uint32 = 0x67446698
	magicStructured uint32 = 0x668e33ef
)

// Handshake flags; the client's have the same numbers.
const (
	handFixedNewstyle uint16 = 1 << 0
	handNoZeroes      uint16 = 1 << 1
)

// Options of the handshake.
const (
	optExportName      uint32 = 1
	optAbort           uint32 = 2
	optList            uint32 = 3
	optStartTLS        uint32 = 5
	optInfo            uint32 = 6
	optGo              uint32 = 7
	optStructuredReply uint32 = 8
	optListMetaContext uint32 = 9
	optSetMetaContext  uint32 = 10
)

// Replies to options. Bit 31 marks an error.
const (
	repAck         uint32 = 1
	repServer      uint32 = 2
	repInfo        uint32 = 3
	repMetaContext uint32 = 4

	repErrBit      uint32 = 1 << 31
	repErrUnsup    uint32 = repErrBit | 1
	repErrPolicy   uint32 = repErrBit | 2
	repErrInvalid  uint32 = repErrBit | 3
	repErrUnknown  uint32 = repErrBit | 6
	repErrShutdown uint32 = repErrBit | 7
	repErrTooBig   uint32 = repErrBit | 9
)

// Information types of INFO and GO.
const (
	infoExport      uint16 = 0
	infoName        uint16 = 1
	infoDescription uint16 = 2
	infoBlockSize   uint16 = 3
)

// Transmission flags.
const (
	flagHasFlags     uint16 = 1 << 0
	flagReadOnly     uint16 = 1 << 1
	flagFlush        uint16 = 1 << 2
	flagFUA          uint16 = 1 << 3
	flagTrim         uint16 = 1 << 5
	flagWriteZeroes  uint16 = 1 << 6
	flagDF           uint16 = 1 << 7
	flagCanMultiConn uint16 = 1 << 8
	flagCache        uint16 = 1 << 10
	flagFastZero     uint16 = 1 << 11
)

// Commands.
const (
	cmdRead        uint16 = 0
	cmdWrite       uint16 = 1
	cmdDisc        uint16 = 2
	cmdFlush       uint16 = 3
	cmdTrim        uint16 = 4
	cmdCache       uint16 = 5
	cmdWriteZeroes uint16 = 6
	cmdBlockStatus uint16 = 7
)

// Command flags.
const (
	cmdFlagFUA      uint16 = 1 << 0
	cmdFlagNoHole   uint16 = 1 << 1
	cmdFlagDF       uint16 = 1 << 2
	cmdFlagReqOne   uint16 = 1 << 3
	cmdFlagFastZero uint16 = 1 << 4
)

// Structured replies.
const (
	replyDone uint16 = 1 << 0

	replyNone        uint16 = 0
	replyOffsetData  uint16 = 1
	replyOffsetHole  uint16 = 2
	replyBlockStatus uint16 = 5
	replyErrBit      uint16 = 1 << 15
	replyError       uint16 = replyErrBit | 1
	replyErrorOffset uint16 = replyErrBit | 2
)

// States of a block in base:allocation.
const (
	stateHole uint32 = 1 << 0
	stateZero uint32 = 1 << 1
)

// Error numbers on the wire.
const (
	errnoPerm      uint32 = 1
	errnoIO        uint32 = 5
	errnoInval     uint32 = 22
	errnoNoSpc     uint32 = 28
	errnoNotSup    uint32 = 95
	errnoShutdown  uint32 = 108
	contextAlloc          = "base:allocation"
	contextAllocID uint32 = 1
)

// Sizes of fixed parts, in bytes.
const (
	requestSize       = 28 // magic 4, flags 2, type 2, cookie 8, offset 8, length 4
	simpleSize        = 16 // magic 4, error 4, cookie 8
	structuredSize    = 20 // magic 4, flags 2, type 2, cookie 8, length 4
	optionHeaderSize  = 16 // magic 8, option 4, length 4
	optReplySize      = 20 // magic 8, option 4, type 4, length 4
	exportNameZeroes  = 124
	minBlock          = 1
	preferredBlock    = 4096
	maxPayload        = 32 << 20
	maxString         = 4096     // names, descriptions, queries, error texts: the protocol's own limit
	maxOption         = 64 << 10 // data of one option that is looked at
	maxOptionSkip     = 1 << 20  // data of one option that is skipped and refused; beyond it the connection ends
	maxOptions        = 1024     // options of one handshake
	maxQueries        = 64       // queries in one meta context option
	maxInfoRequests   = 64       // information requests of one INFO or GO
	maxListed         = 16 << 10 // exports named in one LIST
	maxWriteSkip      = 64 << 20 // payload of a refused write that is skipped; beyond it the connection ends
	maxExtentsInReply = 8 << 10
)
