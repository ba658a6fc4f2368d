package sender

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"gantline/internal/record"
	"gantline/internal/wire"
)

// State says what a sender does.
type State uint8

const (
	StateDown      State = 1 // the link or the receiver is unreachable; tried again and again. → any other
	StateStreaming State = 2 // records flow, or all has been sent
	StateResync    State = 3 // connected; what the receiver needs has been trimmed. → streaming, when a step begins
	StateRefused   State = 4 // the receiver says why in Reason; tried again and again
)

func (s State) String() string {
	switch s {
	case StateDown:
		return "down"
	case StateStreaming:
		return "streaming"
	case StateResync:
		return "resync needed"
	case StateRefused:
		return "refused"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Status is a sender at one instant.
type Status struct {
	State     State
	Reason    string // StateRefused: split-brain, not-permitted, superseded, failed, protocol, replaced
	BlockedOn string // empty: nothing holds it up
	Attempts  int64  // connections tried
	LastHeard time.Time
	RefusedAt record.Seq // what the receiver had stored when it refused the stream last

	Sent          record.Seq
	Has           wire.Ack      // what the receiver has said last
	Heard         bool          // it has said something in this run
	RTT           time.Duration // of the open stream, 0: not known
	Connections   int           // of the open stream
	FlightRecords int
	// Of all batches sent: bytes of their frames before compression and after.
	BatchBytes, FrameBytes int64
	FlightBytes            int
	StopAt                 record.Seq
	Drained                bool
	Capacity               int64        // bytes that the receiver's log can hold, as it has said last; 0: it has not
	ReceiversTable         record.Table // as of its last answer or refusal
}

// Status never waits for the network.
func (s *Sender) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status
	st.Has, st.Sent = s.window.Has(), s.window.LastSent()
	st.FlightRecords, st.FlightBytes = s.window.Flight()
	st.StopAt, st.Drained = s.stopAt, s.ended
	if s.conn != nil {
		st.RTT, _ = s.conn.RTT()
		st.Connections = s.conn.Connections()
	}
	if st.State != StateStreaming || st.BlockedOn != "" {
		return st
	}
	switch {
	case !s.window.Room():
		st.BlockedOn = fmt.Sprintf("the receiver has not acknowledged %d bytes", st.FlightBytes)
	case s.held != "":
		st.BlockedOn = s.held
	case s.cfg.Pace != nil && !s.cfg.Pace.Unlimited() && st.Sent < s.cfg.Source.Durable():
		st.BlockedOn = "the limit of the group or of its link"
	}
	return st
}

// down notes why there is no stream: conn is that of the one that has ended, nil if the attempt has led to none. While
// another is open, as when push and pull have been changed for each other, it says nothing.
func (s *Sender) down(conn *wire.Bundle, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != conn {
		return
	}
	was := s.status
	s.status.State, s.status.Reason = StateDown, ""
	var ref *Refusal
	if errors.As(err, &ref) && ref.Reason != string(wire.KindUnavailable) {
		s.status.State, s.status.Reason = StateRefused, ref.Reason
		s.status.ReceiversTable, s.status.RefusedAt = ref.Table, ref.Stored
	}
	s.status.BlockedOn = err.Error()
	if was.State != s.status.State || was.BlockedOn != s.status.BlockedOn {
		s.cfg.Logger.Info("stream is down", "group", s.cfg.Hello.Group, "state", s.status.State, "cause", err)
	}
}

// become notes a state of an open stream.
func (s *Sender) become(state State, blockedOn string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status.State != state {
		s.cfg.Logger.Info("stream", "group", s.cfg.Hello.Group, "state", state, "blocked_on", blockedOn)
	}
	s.status.State, s.status.Reason, s.status.BlockedOn = state, "", blockedOn
}

// Refusal is the receiver's reason for not serving the stream.
type Refusal struct {
	wire.StreamRefusal
	message string
}

func (r *Refusal) Error() string { return r.message }

// refusalOf turns a peer's error into a Refusal, if it is one.
func refusalOf(err error) error {
	var e *wire.Error
	if !errors.As(err, &e) {
		return fmt.Errorf("link down: %w", err)
	}
	ref := &Refusal{}
	if len(e.Detail) == 0 || json.Unmarshal(e.Detail, &ref.StreamRefusal) != nil {
		ref.StreamRefusal = wire.StreamRefusal{Reason: string(e.Kind)}
	}
	ref.message = e.Message
	return ref
}
