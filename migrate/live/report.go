package live

import (
	"time"

	"github.com/godwit-vmm/godwit/migrate/stream"
)

// Phase is how far a migration has come.
type Phase string

// The phases, in their order.
const (
	PhaseConnect  Phase = "connect"
	PhaseCopy     Phase = "copy"
	PhaseStop     Phase = "stop" // the guest is paused
	PhaseHandover Phase = "handover"
	// PhaseInDoubt: the destination does not answer, and the guest runs nowhere that
	// this host knows of.
	PhaseInDoubt Phase = "in-doubt"
	PhaseStuck   Phase = "stuck"
	// PhasePostCopy: the guest runs there, and the rest of its memory follows.
	PhasePostCopy Phase = "post-copy"
	PhaseDone     Phase = "done"
)

// LetGo says that the source has given the guest away, and cannot take it back by itself.
func (p Phase) LetGo() bool {
	return p == PhaseHandover || p == PhaseInDoubt || p == PhaseStuck || p == PhasePostCopy || p == PhaseDone
}

// Progress is how a migration stands.
type Progress struct {
	Phase Phase `json:"phase"`
	Round int   `json:"round,omitempty"`
	// Sent is what has been copied, Remaining what is known to be left, in bytes.
	Sent      uint64 `json:"sent_bytes"`
	Remaining uint64 `json:"remaining_bytes"`
	// DiskSent and DiskRemaining are those of disks that move with the guest.
	DiskSent      uint64 `json:"disk_sent_bytes,omitempty"`
	DiskRemaining uint64 `json:"disk_remaining_bytes,omitempty"`
	// Rate and DirtyRate are in bytes a second, of the last second or round.
	Rate      uint64 `json:"rate"`
	DirtyRate uint64 `json:"dirty_rate"`
	// Throttle is how many percent of their time the processors stand still.
	Throttle int `json:"throttle_percent,omitempty"`
	// Predicted is how long the guest would be paused if it were now.
	Predicted time.Duration `json:"predicted_downtime_ns,omitempty"`
	Elapsed   time.Duration `json:"elapsed_ns"`
	// Reason says more, for people.
	Reason string `json:"reason,omitempty"`
}

// Report says how a migration went. Times are as the source saw them, but for what is in
// the destination's part of the downtime.
type Report struct {
	Total  time.Duration `json:"total_ns"`
	Rounds int           `json:"rounds"`
	// Bytes of memory that were sent as pages, and as ranges of zeros; and what went
	// over the wire.
	Bytes uint64 `json:"bytes"`
	Zero  uint64 `json:"zero_bytes"`
	Wire  uint64 `json:"wire_bytes"`
	// Shared is how many bytes of memory were passed to another process of this host, and
	// not copied.
	Shared uint64 `json:"shared_bytes,omitempty"`
	// Disks has the bytes of disks that moved with the guest.
	Disks stream.DiskStats `json:"disks,omitzero"`
	// Downtime is from the pause to the word that the guest runs there.
	Downtime Downtime `json:"downtime"`
	// Throttle is the most that the processors were slowed down, in percent.
	Throttle int `json:"throttle_percent,omitempty"`
	// PostCopy is set if memory came after the handover.
	PostCopy *PostCopyReport `json:"post_copy,omitempty"`
}

// Downtime is what the time was spent with that the guest stood still.
type Downtime struct {
	Total time.Duration `json:"total_ns"`
	// Pause is until all processors and devices stood still, LastRound until the rest
	// of the memory had come, Save what of the state took longer than that.
	Pause     time.Duration `json:"pause_ns"`
	LastRound time.Duration `json:"last_round_ns"`
	Save      time.Duration `json:"save_ns"`
	// State is until the destination said READY, Handover until it said STARTED.
	State    time.Duration `json:"state_ns"`
	Handover time.Duration `json:"handover_ns"`
	// There are the parts of State and Handover on the destination.
	There Times `json:"there"`
	// Rest is what memory had to be sent in the last round, in bytes.
	Rest uint64 `json:"rest_bytes"`
	// DiskRest is what of disks had to be sent then, in bytes.
	DiskRest uint64 `json:"disk_rest_bytes,omitempty"`
}
