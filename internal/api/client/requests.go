package client

import (
	"context"
	"encoding/json"
	"time"
)

// States of a guest, as Info and Stats give them.
const (
	NotStarted = "Not started"
	Running    = "Running"
	Paused     = "Paused"
)

// Info is the answer of GET /.
type Info struct {
	ID         string `json:"id"`
	State      string `json:"state"`
	VMMVersion string `json:"vmm_version"`
	AppName    string `json:"app_name"`
}

// Info says which guest this is and whether it runs.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var i Info
	err := c.Do(ctx, "GET", "/", nil, &i)
	return i, err
}

// Stats is the answer of GET /stats. Memory is in bytes.
type Stats struct {
	State string `json:"state"`
	CPUs  int    `json:"vcpu_count"`
	// Memory is the size of the guest's memory, Granted that less what the
	// balloon holds, and Used what of it takes up memory of the host; 0 if
	// that is not known.
	Memory  uint64 `json:"memory_bytes"`
	Granted uint64 `json:"memory_granted_bytes"`
	Used    uint64 `json:"memory_used_bytes"`
	// Started is when the guest was started first, and Uptime how many
	// microseconds ago that was.
	Started time.Time `json:"started"`
	Uptime  int64     `json:"uptime_us"`
}

// Stats says how the guest is.
func (c *Client) Stats(ctx context.Context) (Stats, error) {
	var s Stats
	err := c.Do(ctx, "GET", "/stats", nil, &s)
	return s, err
}

// Config is the guest's whole configuration, as GET /vm/config gives it.
func (c *Client) Config(ctx context.Context) (json.RawMessage, error) {
	var config json.RawMessage
	err := c.Do(ctx, "GET", "/vm/config", nil, &config)
	return config, err
}

// Pause stops the guest's processors until Resume.
func (c *Client) Pause(ctx context.Context) error { return c.setState(ctx, Paused) }

// Resume lets a guest that is paused go on.
func (c *Client) Resume(ctx context.Context) error { return c.setState(ctx, "Resumed") }

func (c *Client) setState(ctx context.Context, state string) error {
	return c.Do(ctx, "PATCH", "/vm", map[string]string{"state": state}, nil)
}

// PowerButton presses the guest's power button; whether it then shuts down is the
// guest's decision.
func (c *Client) PowerButton(ctx context.Context) error {
	return c.Do(ctx, "PUT", "/actions", map[string]string{"action_type": "SendCtrlAltDel"}, nil)
}
