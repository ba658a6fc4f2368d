package volume

import (
	"context"
	"log/slog"
	"time"

	"gantline/internal/block"
	"gantline/internal/copier"
	"gantline/internal/record"

	"golang.org/x/time/rate"
)

// Bitmap is what volume needs of block.Bitmap.
type Bitmap interface {
	Set(bit int64)
	Clear(bit int64)
	Test(bit int64) bool
	Count() int64
	Bits() int64
	NextSet(from int64) (int64, bool)
	NextClear(from int64) (int64, bool)
	Flush() error
}

// Options of a volume; zero values mean the defaults.
type Options struct {
	Mode         Mode  // default ModeNormal
	HoldRequests int   // held requests, default 4096; at the limit submitters wait
	HoldBytes    int64 // their payload, default 64 MiB
	Readers      int   // concurrent reads that wait for a disk or a fetch, default 32
}

type Volume struct{ name string }

func NewVolume(name string, dev block.Device, opt Options) *Volume { return &Volume{name: name} }
func (v *Volume) Name() string                                     { return v.name }
func (v *Volume) Size() int64                                      { return 0 }
func (v *Volume) Device() block.Device                             { return nil }
func (v *Volume) Mode() Mode                                       { return 0 }
func (v *Volume) Group() *Group                                    { return nil }

// Submit implements block.Target. SubmitAt also refuses (moved) what states a higher epoch than the group serves in.
func (v *Volume) Submit(reqs []*block.Request)                 {}
func (v *Volume) SubmitAt(epoch uint64, reqs []*block.Request) {}

// SetMode switches; with drain it returns only when all that was admitted before has been answered or is held.
func (v *Volume) SetMode(ctx context.Context, m Mode, drain bool) error { return nil }
func (v *Volume) SetRelay(t block.Target)                               {}
func (v *Volume) SetSuccessor(e *block.MovedError)                      {}
func (v *Volume) Drain(ctx context.Context) error                       { return nil }
func (v *Volume) Held() (requests int, bytes int64)                     { return 0, 0 }
func (v *Volume) Close() error                                          { return nil }

// Fetcher reads the source of a move.
type Fetcher interface {
	Fetch(ctx context.Context, off int64, p []byte) error
}
type Presence struct {
	Map      Bitmap // set: present; durable
	Region   int64  // bytes
	Fetch    Fetcher
	Parallel int
	Limit    *rate.Limiter
}
type PresenceStatus struct {
	Regions, Present        int64 // Present: durable
	BytesBackground, Demand int64
	Away                    bool
	Err                     error
}

func (v *Volume) SetPresence(p Presence) error   { return nil }
func (v *Volume) ClearPresence() error           { return nil } // refused unless all is present and flushed
func (v *Volume) Fill(ctx context.Context) error { return nil }
func (v *Volume) PresenceStatus() (PresenceStatus, bool) {
	return PresenceStatus{}, false
}

type Member struct {
	Number record.VolumeNumber
	Volume *Volume
}

type Config struct {
	Name     string
	Log      Log
	Members  []Member
	Logger   *slog.Logger
	OnRecord func(record.Record) // follower: member, digest, end, fence records, in order, once applied
	OnFailed func(error)

	CacheBytes       int64         // default 128 MiB
	RecentBytes      int64         // default 64 MiB
	CopyBytes        int64         // default 32 MiB
	RoundBytes       int64         // default 8 MiB
	RoundDelay       time.Duration // default 100 ms
	SyncDelay        time.Duration // default 4 ms
	SyncBytes        int64         // default 1 MiB
	CheckpointEvery  time.Duration // default 30 s
	CheckpointFilled float64       // default 0.4
}

type Role uint8

const (
	RoleIdle      Role = 1
	RoleFollowing Role = 2
	RoleServing   Role = 3
	RoleSealed    Role = 4
	RoleFailed    Role = 5
)

type Group struct{}

func Open(cfg Config) (*Group, error)                                    { return &Group{}, nil }
func (g *Group) Run(ctx context.Context) error                           { return nil }
func (g *Group) Close() error                                            { return nil }
func (g *Group) Volume(n record.VolumeNumber) *Volume                    { return nil }
func (g *Group) Add(ctx context.Context, m Member, payload []byte) error { return nil }
func (g *Group) Remove(ctx context.Context, n record.VolumeNumber, payload []byte) error {
	return nil
}
func (g *Group) Role() Role                                                   { return 0 }
func (g *Group) Err() error                                                   { return nil }
func (g *Group) Serve(row record.Row) error                                   { return nil }
func (g *Group) Follow() error                                                { return nil }
func (g *Group) Adopt(base record.Seq, table record.Table, done []byte) error { return nil }
func (g *Group) Seal(ctx context.Context, next record.EpochID) (record.Seq, error) {
	return 0, nil
}
func (g *Group) Sealed() (cut record.Seq, next record.EpochID, ok bool) {
	return 0, record.EpochID{}, false
}
func (g *Group) Intend(upTo record.Seq) error         { return nil } // before a step's first Apply
func (g *Group) Apply(recs []record.Record) error     { return nil }
func (g *Group) Applied() record.Seq                  { return 0 }
func (g *Group) Appended() record.Seq                 { return 0 }
func (g *Group) Durable() record.Seq                  { return 0 }
func (g *Group) Checkpoint(ctx context.Context) error { return nil }
func (g *Group) DoneTable() []byte                    { return nil }
func (g *Group) SetDoneTable(b []byte) error          { return nil }
func (g *Group) Sync(ctx context.Context) error       { return nil }

type SubscriberState uint8

const (
	SubStreaming SubscriberState = 1 // in the stream; marks may be left (initial copy)
	SubResyncing SubscriberState = 2 // in the stream from a step's begin on
	SubSuspended SubscriberState = 3 // cut off; every write marks
)

type Retain uint8

const (
	RetainApplied Retain = 1
	RetainDurable Retain = 2 // "transferred"
)

type SubscriberEvent struct {
	Subscriber string
	State      SubscriberState
	Reason     string
}

type SubscriberConfig struct {
	Acked     record.Seq      // what it is known to have; 0: as the log's blob or trimmed cursor says
	State     SubscriberState // 0: as the log's blob says, else streaming
	Retain    Retain
	Changed   map[record.VolumeNumber]Bitmap
	BlockSize int64 // bytes a mark stands for, default 64 KiB
	OnEvent   func(SubscriberEvent)
}
type Subscriber struct{}

func (g *Group) Subscribe(name string, cfg SubscriberConfig) (*Subscriber, error) { return nil, nil }
func (g *Group) Unsubscribe(name string) error                                    { return nil }
func (s *Subscriber) Table() record.Table                                         { return nil }
func (s *Subscriber) Durable() record.Seq                                         { return 0 }
func (s *Subscriber) State() SubscriberState                                      { return 0 }
func (s *Subscriber) Wait(ctx context.Context, after record.Seq) error            { return nil }
func (s *Subscriber) Read(from record.Seq, maxRecords, maxBytes int) ([]record.Record, error) {
	return nil, nil
}
func (s *Subscriber) Acked(stored, durable, applied record.Seq) error { return nil }
func (s *Subscriber) Cursor() (stored, durable, applied record.Seq)   { return 0, 0, 0 }
func (s *Subscriber) Suspend(reason string) error                     { return nil }
func (s *Subscriber) ChangedBytes() int64                             { return 0 }

// MarkData marks all data of a volume and tells the subscriber its holes (initial copy).
func (s *Subscriber) MarkData(n record.VolumeNumber) error               { return nil }
func (s *Subscriber) MarkAll(n record.VolumeNumber) error                { return nil }
func (s *Subscriber) BeginStep(atOnce bool) (record.Seq, error)          { return 0, nil }
func (s *Subscriber) EndStep(ctx context.Context) (record.Seq, error)    { return 0, nil }
func (s *Subscriber) RunCopy(ctx context.Context, opt CopyOptions) error { return nil } // until no mark is left
func (s *Subscriber) Copy(ctx context.Context, n record.VolumeNumber, off, length int64, flags uint8) (record.Seq, error) {
	return 0, nil
}
func (s *Subscriber) CopyProgress() copier.Progress { return copier.Progress{} }

type CopyOptions struct {
	Parallel int
	Limit    *rate.Limiter
	AtOnce   bool // initial copy: applied at once, outside a step
}
