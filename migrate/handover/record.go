package handover

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Record is what the journal of a host holds of a migration.
type Record struct {
	Entry
	ID ID
	// VM is the name of the guest on this host.
	VM string
	// Peer is the address of the other host, for people and to ask it again.
	Peer string
	// Time is when the record was written.
	Time time.Time
}

// ErrDamaged is wrapped by the error about a record that cannot be read. Whatever it
// said, it is no permission to run a guest.
var ErrDamaged = errors.New("the record is damaged")

// recordVersion is raised when what is written changes its meaning.
const recordVersion = 1

// Bounds of what is read.
const (
	// maxRecord is far more than a record with the longest texts, in which JSON
	// writes up to six bytes for one.
	maxRecord = 16 << 10
	maxPeer   = 512
	maxVM     = 63
)

// envelope is the file: the record as it is written, and what shows that it is whole.
type envelope struct {
	Version int             `json:"version"`
	SHA256  string          `json:"sha256"`
	Record  json.RawMessage `json:"record"`
}

// body is the record in the file.
type body struct {
	ID      ID          `json:"id"`
	VM      string      `json:"vm"`
	Peer    string      `json:"peer"`
	Time    time.Time   `json:"time"`
	Role    Role        `json:"role"`
	State   RecordState `json:"state"`
	Base    uint64      `json:"base"`
	Epoch   uint64      `json:"epoch"`
	Settled bool        `json:"settled"`
	Reason  string      `json:"reason,omitempty"`
}

// encode is the file of a record.
func (r Record) encode() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("record of migration %s: %w", r.ID, err)
	}
	inner, err := json.Marshal(body{
		ID: r.ID, VM: r.VM, Peer: r.Peer, Time: r.Time, Role: r.Role, State: r.State,
		Base: r.Base, Epoch: r.Epoch, Settled: r.Settled, Reason: r.Reason,
	})
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(envelope{Version: recordVersion, SHA256: checksum(inner), Record: inner})
	return append(b, '\n'), err
}

func checksum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// decodeRecord reads what encode wrote. Anything else is an error that wraps ErrDamaged.
func decodeRecord(b []byte) (Record, error) {
	r, err := readRecord(b)
	if err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return r, nil
}

func readRecord(b []byte) (Record, error) {
	if len(b) > maxRecord {
		return Record{}, fmt.Errorf("it is longer than %d bytes", maxRecord)
	}
	var e envelope
	if err := strictly(b, &e); err != nil {
		return Record{}, err
	}
	if e.Version != recordVersion {
		return Record{}, fmt.Errorf("version %d: want %d; was it written by another version of the program?", e.Version, recordVersion)
	}
	if e.SHA256 != checksum(e.Record) {
		return Record{}, errors.New("its checksum does not fit")
	}
	var in body
	if err := strictly(e.Record, &in); err != nil {
		return Record{}, err
	}
	r := Record{
		Entry: Entry{Role: in.Role, State: in.State, Base: in.Base, Epoch: in.Epoch, Settled: in.Settled, Reason: in.Reason},
		ID:    in.ID, VM: in.VM, Peer: in.Peer, Time: in.Time,
	}
	return r, r.check()
}

// strictly reads one JSON value and nothing else.
func strictly(b []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more behind its end")
	}
	return nil
}

func (r Record) check() error {
	if err := checkVM(r.VM); err != nil {
		return err
	}
	if len(r.Peer) > maxPeer {
		return fmt.Errorf("address of the peer of %d bytes: want at most %d", len(r.Peer), maxPeer)
	}
	return r.Entry.check()
}

// checkVM takes the names that a machine can have, which are parts of paths.
func checkVM(name string) error {
	ok := name != "" && len(name) <= maxVM
	for i, c := range []byte(name) {
		alphanumeric := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		ok = ok && (alphanumeric || i > 0 && (c == '.' || c == '-' || c == '_'))
	}
	if !ok {
		return fmt.Errorf("guest name %.80q: want up to %d letters, digits, dots, dashes and underscores, a letter or digit first", name, maxVM)
	}
	return nil
}
