//! Protocols that are not spoken here, so that they are refused by name and at once: known by what a client says first, or
//! by a port whose server speaks first. Each is told in its own words, if it has any before both sides have agreed on more.

use std::fmt;

use uuid::Uuid;

/// What is neither TLS nor HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Foreign {
    Amqp,
    Ftp,
    Git,
    Imap,
    Kafka,
    Ldap,
    MongoDb,
    Mqtt,
    MySql,
    Nats,
    Nntp,
    Pop3,
    PostgreSql,
    Rdp,
    Redis,
    Smb,
    Smtp,
    Socks,
    SqlServer,
    Ssh,
    Telnet,
    Vnc,
}

impl Foreign {
    /// Whose server speaks first at `port`, so that its clients say nothing.
    pub(crate) fn at(port: u16) -> Option<Self> {
        match port {
            21 => Some(Self::Ftp),
            22 => Some(Self::Ssh),
            23 => Some(Self::Telnet),
            25 | 587 => Some(Self::Smtp),
            110 => Some(Self::Pop3),
            119 => Some(Self::Nntp),
            143 => Some(Self::Imap),
            3306 => Some(Self::MySql),
            4222 => Some(Self::Nats),
            5900 => Some(Self::Vnc),
            _ => None,
        }
    }

    /// Whose client begins so. No request of HTTP's and no ClientHello does.
    pub(crate) fn by(said: &[u8]) -> Option<Self> {
        match said {
            // RFC 4253 section 4.2.
            [b'S', b'S', b'H', b'-', ..] => Some(Self::Ssh),
            [b'A', b'M', b'Q', b'P', 0, ..] => Some(Self::Amqp),
            // gitprotocol-pack(5): a length in four hexadecimal digits, then the service.
            [a, b, c, d, b'g', b'i', b't', b'-', ..]
                if [a, b, c, d].iter().all(|digit| digit.is_ascii_hexdigit()) =>
            {
                Some(Self::Git)
            }
            // RESP: an array of bulk strings.
            [b'*', b'1'..=b'9', b'\r', b'\n', b'$', ..] => Some(Self::Redis),
            // A length, then a version or the code of a request for TLS, for GSSAPI or to cancel.
            [0, 0, _, _, 0, 3, 0, 0..=2, ..] | [0, 0, 0, _, 4, 0xd2, 0x16, 0x2e..=0x30, ..] => {
                Some(Self::PostgreSql)
            }
            [0, _, _, _, 0xfe | 0xff, b'S', b'M', b'B', ..] => Some(Self::Smb),
            // A length, then the key of `ApiVersions` and its version.
            [0, 0, 0, _, 0, 18, 0, 0..=4, ..] => Some(Self::Kafka),
            // A length, two ids, then the opcode of `OP_QUERY` or `OP_MSG`.
            [_, _, _, _, _, _, _, _, _, _, _, _, 0xd4 | 0xdd, 7, 0, 0, ..] => Some(Self::MongoDb),
            // `CONNECT` (MQTT 5.0 section 3.1).
            [0x10, _, 0, 4, b'M', b'Q', b'T', b'T', ..] => Some(Self::Mqtt),
            // A bind request (RFC 4511 section 4.2), its message's id in one byte.
            [0x30, _, 2, 1, _, 0x60, ..] => Some(Self::Ldap),
            // TPKT (RFC 1006 section 6) with a connection request.
            [3, 0, _, _, _, 0xe0, ..] => Some(Self::Rdp),
            // `PRELOGIN`, alone in its message.
            [0x12, 1, 0, _, 0, 0, ..] => Some(Self::SqlServer),
            // RFC 1928 section 3; version 4 with `CONNECT`.
            [5, 1..=9, 0..=9, ..] | [4, 1, _, _, _, _, _, _, ..] => Some(Self::Socks),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Amqp => "AMQP",
            Self::Ftp => "FTP",
            Self::Git => "git's own protocol",
            Self::Imap => "IMAP",
            Self::Kafka => "Kafka",
            Self::Ldap => "LDAP",
            Self::MongoDb => "MongoDB",
            Self::Mqtt => "MQTT",
            Self::MySql => "MySQL",
            Self::Nats => "NATS",
            Self::Nntp => "NNTP",
            Self::Pop3 => "POP3",
            Self::PostgreSql => "PostgreSQL",
            Self::Rdp => "RDP",
            Self::Redis => "Redis",
            Self::Smb => "SMB",
            Self::Smtp => "SMTP",
            Self::Socks => "SOCKS",
            Self::SqlServer => "SQL Server",
            Self::Ssh => "SSH",
            Self::Telnet => "Telnet",
            Self::Vnc => "VNC",
        }
    }

    /// No, as its client reads it before anything has been agreed on. Empty: it has no words for it.
    pub(crate) fn no(self, decision: Uuid) -> Vec<u8> {
        let text = format!(
            "Refused by AgentGuard: no rule lets {self} through here; do not retry (decision {decision})"
        );
        match self {
            // RFC 5321 section 3.1.
            Self::Smtp => format!("554 5.7.1 {text}\r\n").into(),
            // RFC 959 section 5.4.
            Self::Ftp => format!("421 {text}\r\n").into(),
            // RFC 9051 section 7.1.5.
            Self::Imap => format!("* BYE {text}\r\n").into(),
            // RFC 1939 section 3.
            Self::Pop3 => format!("-ERR {text}\r\n").into(),
            // RFC 3977 section 5.1.
            Self::Nntp => format!("502 {text}\r\n").into(),
            Self::Redis => format!("-ERR {text}\r\n").into(),
            Self::Nats => format!("-ERR '{text}'\r\n").into(),
            Self::Telnet => format!("{text}\r\n").into(),
            Self::Git => format!("{:04x}ERR {text}", 8 + text.len()).into(),
            Self::MySql => mysql_error(&text),
            Self::PostgreSql => postgresql_error(&text),
            Self::Ssh => ssh_disconnect(&text),
            Self::Amqp
            | Self::Kafka
            | Self::Ldap
            | Self::MongoDb
            | Self::Mqtt
            | Self::Rdp
            | Self::Smb
            | Self::Socks
            | Self::SqlServer
            | Self::Vnc => Vec::new(),
        }
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// `ERR_Packet` in place of the handshake: a length in three bytes, number 0, 0xff, `ER_HOST_NOT_PRIVILEGED`.
fn mysql_error(text: &str) -> Vec<u8> {
    const HOST_NOT_PRIVILEGED: u16 = 1130;
    let length = u32::try_from(3 + text.len()).expect("the text is short");
    let mut packet = length.to_le_bytes()[..3].to_vec();
    packet.extend([0, 0xff]);
    packet.extend(HOST_NOT_PRIVILEGED.to_le_bytes());
    packet.extend(text.as_bytes());
    packet
}

/// `ErrorResponse`: severity, SQLSTATE `invalid_authorization_specification`, message.
fn postgresql_error(text: &str) -> Vec<u8> {
    let fields = format!("SFATAL\0VFATAL\0C28000\0M{text}\0\0");
    let length = u32::try_from(4 + fields.len()).expect("the text is short");
    let mut message = vec![b'E'];
    message.extend(length.to_be_bytes());
    message.extend(fields.as_bytes());
    message
}

/// A version, then `SSH_MSG_DISCONNECT` (RFC 4253 section 11.1) in a packet without encryption (section 6).
fn ssh_disconnect(text: &str) -> Vec<u8> {
    const DISCONNECT: u8 = 1;
    const HOST_NOT_ALLOWED_TO_CONNECT: u32 = 1;
    const BLOCK: usize = 8;
    let mut payload = vec![DISCONNECT];
    payload.extend(HOST_NOT_ALLOWED_TO_CONNECT.to_be_bytes());
    for text in [text, ""] {
        let length = u32::try_from(text.len()).expect("the text is short");
        payload.extend(length.to_be_bytes());
        payload.extend(text.as_bytes());
    }
    // All of it is whole blocks; the padding is at least four bytes.
    let padding = BLOCK - (5 + payload.len()) % BLOCK;
    let padding = if padding < 4 {
        padding + BLOCK
    } else {
        padding
    };
    let length = u32::try_from(1 + payload.len() + padding).expect("the text is short");
    let mut said = b"SSH-2.0-AgentGuard\r\n".to_vec();
    said.extend(length.to_be_bytes());
    said.push(u8::try_from(padding).expect("less than two blocks"));
    said.extend(payload);
    said.resize(said.len() + padding, 0);
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sniff::{Recogniser, SniffError};

    const OPENINGS: [(&[u8], &str); 15] = [
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", "SSH"),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", "PostgreSQL"),
        (b"\0\0\0\x08\x04\xd2\x16\x30", "PostgreSQL"),
        (b"\0\0\0\x21\0\x03\0\0user\0a\0", "PostgreSQL"),
        (b"*1\r\n$4\r\nPING\r\n", "Redis"),
        (
            b"003agit-upload-pack /x.git\0host=h\0",
            "git's own protocol",
        ),
        (b"AMQP\0\0\x09\x01", "AMQP"),
        (b"\x10\x0c\0\x04MQTT\x04\x02\0\x3c\0\0", "MQTT"),
        (b"\x30\x0c\x02\x01\x01\x60\x07", "LDAP"),
        (b"\x03\0\0\x13\x0e\xe0\0\0", "RDP"),
        (b"\x05\x01\0", "SOCKS"),
        (b"\0\0\0\x45\xffSMB", "SMB"),
        (b"\0\0\0\x20\0\x12\0\x03", "Kafka"),
        (b"\x12\x01\0\x2f\0\0\x01\0", "SQL Server"),
        (b"\x3a\0\0\0\x01\0\0\0\0\0\0\0\xd4\x07\0\0", "MongoDB"),
    ];

    #[test]
    fn clients_that_speak_first_are_known_by_name() {
        for (said, name) in OPENINGS {
            let known = Recogniser::default().feed(said);
            let Err(SniffError::Foreign(foreign)) = known else {
                panic!("{name}: {known:?}");
            };
            assert_eq!(foreign.to_string(), name);
        }
    }

    #[test]
    fn nothing_of_http_is_taken_for_another_protocol() {
        for said in [
            "GET / HTTP/1.1\r\n",
            "S / HTTP/1.1\r\n",
            "SSH / HTTP/1.1\r\n",
            "M-SEARCH * HTTP/1.1\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "*1 / HTTP/1.1\r\n",
            "003a / HTTP/1.1\r\n",
            "AMQP / HTTP/1.1\r\n",
        ] {
            for end in 1..=said.len() {
                assert_eq!(Foreign::by(&said.as_bytes()[..end]), None, "{said:?}");
            }
        }
    }

    #[test]
    fn packets_have_the_lengths_that_they_say() {
        let decision = Uuid::nil();
        let mysql = Foreign::MySql.no(decision);
        let length = u32::from_le_bytes([mysql[0], mysql[1], mysql[2], 0]);
        assert_eq!(length as usize, mysql.len() - 4);
        let postgresql = Foreign::PostgreSql.no(decision);
        let length = u32::from_be_bytes(postgresql[1..5].try_into().unwrap());
        assert_eq!(length as usize, postgresql.len() - 1);
        let git = String::from_utf8(Foreign::Git.no(decision)).unwrap();
        assert_eq!(usize::from_str_radix(&git[..4], 16).unwrap(), git.len());
        for text in 0..32 {
            let said = ssh_disconnect(&"x".repeat(text));
            let packet = &said[b"SSH-2.0-AgentGuard\r\n".len()..];
            let length = u32::from_be_bytes(packet[..4].try_into().unwrap());
            assert_eq!(packet.len() % 8, 0);
            assert_eq!(length as usize, packet.len() - 4);
            assert!(packet[4] >= 4);
        }
    }
}
