use super::*;
use crate::auth::{Denial, DevAuthoriser};
use tidegate_protocol::{Invalid, Policy};

const fn now(ms: u64) -> Now {
    Now {
        mono: ms,
        wall: 1_000_000 + ms,
    }
}

fn session(authoriser: impl Authoriser) -> Session {
    let limits = Limits {
        subscriptions: 2,
        ..Limits::default()
    };
    session_in(Form::Msgpack, limits, authoriser)
}

fn session_in(form: Form, limits: Limits, authoriser: impl Authoriser) -> Session {
    let config = SessionConfig {
        node: "n".into(),
        limits,
        ping_ms: 45_000,
        hello_ms: 10_000,
    };
    Session::new(Arc::new(config), Arc::new(authoriser), 1, form, None, 0)
}

fn hello(session: &mut Session, token: Option<&str>) -> Vec<Effect> {
    let hello = Hello {
        token: token.map(Into::into),
        ..Hello::default()
    };
    session
        .handle(now(0), Input::Message(Ok(ClientMessage::Hello(hello))))
        .into_vec()
}

fn sub(session: &mut Session, id: u64, space: &str) -> Vec<Effect> {
    let space = SpaceId::parse(space).unwrap();
    let sub = Sub {
        id,
        space,
        client: None,
        from: None,
        filter: None,
    };
    session
        .handle(now(1), Input::Message(Ok(ClientMessage::Sub(sub))))
        .into_vec()
}

/// Tokens are `user:expiry`.
struct Expiring;

impl Authoriser for Expiring {
    fn authenticate(&self, token: Option<&str>, now_ms: u64) -> Result<Identity, Denial> {
        let (user, at) = token.and_then(|t| t.split_once(':')).unwrap();
        let expires: u64 = at.parse().unwrap();
        if expires <= now_ms {
            return Err(Denial {
                code: Code::TokenExpired,
                message: "expired".into(),
            });
        }
        Ok(Identity::new(user, Some(expires)))
    }
    fn read(&self, _: &Identity, space: &SpaceId) -> Result<ReadScope, Denial> {
        match space.as_str() {
            "no" => Err(Denial {
                code: Code::Forbidden,
                message: "no".into(),
            }),
            "later" => Err(Denial {
                code: Code::Unavailable,
                message: "later".into(),
            }),
            _ => Ok(ReadScope::All),
        }
    }
    fn write(&self, _: &Identity, _: &SpaceId, _: &DocPath) -> Result<(), Denial> {
        Ok(())
    }
    fn policy(&self, _: &SpaceId, _: &DocPath) -> Policy {
        Policy::Lww
    }
}

#[test]
fn nothing_but_hello_opens_a_session_and_only_once() {
    let mut s = session(DevAuthoriser);
    assert!(matches!(sub(&mut s, 1, "a")[..], [Effect::Close(Code::Protocol, _)]));
    assert!(hello(&mut s, None).is_empty(), "closed is closed");
    let mut s = session(DevAuthoriser);
    assert!(matches!(
        hello(&mut s, None)[..],
        [Effect::Send(ServerMessage::Welcome(_))]
    ));
    assert!(matches!(hello(&mut s, None)[..], [Effect::Close(Code::Protocol, _)]));
}

#[test]
fn hello_silence_and_expiry_each_have_their_deadline() {
    let mut s = session(Expiring);
    assert_eq!(s.deadline(now(0)), Some(10_000));
    assert!(s.handle(now(9_999), Input::Time).is_empty());
    assert!(matches!(
        s.handle(now(10_000), Input::Time)[..],
        [Effect::Close(Code::HandshakeTimeout, _)]
    ));
    let mut s = session(Expiring);
    hello(&mut s, Some("a:9000000"));
    assert!(s.handle(now(89_999), Input::Heard).is_empty());
    assert!(s.handle(now(179_998), Input::Time).is_empty());
    assert!(matches!(
        s.handle(now(179_999), Input::Time)[..],
        [Effect::Close(Code::Idle, _)]
    ));
    let mut s = session(Expiring);
    hello(&mut s, Some("a:1005000"));
    assert_eq!(s.deadline(now(0)), Some(5_000));
    assert!(matches!(sub(&mut s, 1, "a")[..], [Effect::Subscribe(_)]));
    let ping = Input::Message(Ok(ClientMessage::Ping { at: 1 }));
    assert!(matches!(
        s.handle(now(5_000), ping)[..],
        [Effect::Close(Code::TokenExpired, _)]
    ));
}

#[test]
fn auth_renews_for_the_same_user_only() {
    let mut s = session(Expiring);
    hello(&mut s, Some("a:1005000"));
    let auth = |token: &str| Input::Message(Ok(ClientMessage::Auth { token: token.into() }));
    assert!(s.handle(now(1), auth("a:1090000")).is_empty());
    assert!(s.handle(now(6_000), Input::Time).is_empty());
    assert!(matches!(
        s.handle(now(7_000), auth("b:1090000"))[..],
        [Effect::Close(Code::UserChanged, _)]
    ));
}

#[test]
fn a_second_sub_of_a_space_replaces_the_first_and_the_limit_is_named() {
    let mut s = session(DevAuthoriser);
    hello(&mut s, None);
    assert!(matches!(sub(&mut s, 1, "a")[..], [Effect::Subscribe(_)]));
    assert!(matches!(
        sub(&mut s, 2, "a")[..],
        [Effect::Unsubscribe { id: 1, .. }, Effect::Subscribe(_)]
    ));
    assert!(matches!(
        sub(&mut s, 2, "b")[..],
        [Effect::Send(ServerMessage::Error {
            code: Code::Invalid,
            ..
        })]
    ));
    assert!(matches!(sub(&mut s, 3, "b")[..], [Effect::Subscribe(_)]));
    let over = sub(&mut s, 4, "c");
    let [
        Effect::Send(ServerMessage::Error {
            code: Code::TooMany,
            message,
            re: Some(4),
        }),
    ] = &over[..]
    else {
        panic!("{over:?}")
    };
    assert_eq!(message, "subscriptions is limited to 2, found 3");
}

#[test]
fn only_a_rule_that_says_no_purges() {
    let mut s = session(Expiring);
    hello(&mut s, Some("a:9000000"));
    let denied = |effects: Vec<Effect>| match effects[..] {
        [Effect::Send(ServerMessage::Denied { purge, .. })] => purge,
        _ => panic!("{effects:?}"),
    };
    assert!(denied(sub(&mut s, 1, "no")));
    assert!(!denied(sub(&mut s, 1, "later")));
}

#[test]
fn an_error_outside_a_write_is_answered_and_only_a_malformed_frame_closes() {
    let mut s = session(DevAuthoriser);
    hello(&mut s, None);
    let bad = |code| DecodeError {
        error: Invalid {
            code,
            message: "m".into(),
        },
        write: None,
        at: None,
        re: Some(9),
    };
    let answer = s.handle(now(1), Input::Message(Err(bad(Code::Unsupported))));
    assert!(matches!(
        answer[..],
        [Effect::Send(ServerMessage::Error {
            code: Code::Unsupported,
            re: Some(9),
            ..
        })]
    ));
    assert!(matches!(
        s.handle(now(1), Input::Message(Err(bad(Code::Malformed))))[..],
        [Effect::Close(Code::Malformed, _)]
    ));
}

/// What `welcome.caps` says to a client with these, and whether the session takes compressed messages.
fn caps(form: Form, caps: &[&str]) -> (Vec<String>, bool) {
    let mut session = session_in(form, Limits::default(), DevAuthoriser);
    let hello = Hello {
        token: Some("ann".into()),
        caps: caps.iter().map(ToString::to_string).collect(),
        ..Hello::default()
    };
    let effects = session.handle(now(0), Input::Message(Ok(ClientMessage::Hello(hello))));
    match &effects[..] {
        [Effect::Send(ServerMessage::Welcome(welcome))] => (welcome.caps.clone(), session.compresses()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn compression_is_agreed_on_only_in_messagepack_and_with_who_declares_it() {
    assert_eq!(caps(Form::Msgpack, &[]), (vec![], false));
    assert_eq!(caps(Form::Msgpack, &["y", "Z"]), (vec![], false));
    assert_eq!(caps(Form::Msgpack, &["y", "z"]), (vec!["z".to_owned()], true));
    assert_eq!(caps(Form::Json, &["z"]), (vec![], false));
    assert!(!session(DevAuthoriser).compresses());
}

#[test]
fn a_client_that_takes_less_than_a_message_may_have_is_refused_at_hello_with_both_numbers() {
    let answer = |message_bytes, max_message| {
        let limits = Limits {
            message_bytes,
            ..Limits::default()
        };
        let hello = Hello {
            max_message,
            ..Hello::default()
        };
        let mut session = session_in(Form::Msgpack, limits, DevAuthoriser);
        match &session.handle(now(0), Input::Message(Ok(ClientMessage::Hello(hello))))[..] {
            [Effect::Send(ServerMessage::Welcome(_))] => None,
            [Effect::Close(Code::Oversize, why)] => Some(why.clone()),
            other => panic!("{other:?}"),
        }
    };
    let mib = 1 << 20;
    for (message_bytes, max_message) in [
        (mib, None),
        (mib, Some(1 << 20)),
        (mib, Some(u64::MAX)),
        (1_024, None),
        (1_024, Some(1_024)),
        (4 * mib, Some(4 << 20)),
    ] {
        assert_eq!(
            answer(message_bytes, max_message),
            None,
            "{message_bytes} {max_message:?}"
        );
    }
    for (message_bytes, max_message, takes) in [
        (mib + 1, None, "1048576"),
        (4 * mib, Some((4 << 20) - 1), "4194303"),
        (mib, Some(0), "0"),
    ] {
        let why = answer(message_bytes, max_message).unwrap();
        assert!(why.contains(&format!("up to {message_bytes} bytes")), "{why}");
        assert!(why.contains(&format!("hello.max_message allows {takes}:")), "{why}");
    }
}

#[test]
fn a_message_that_is_too_large_once_inflated_closes_the_connection() {
    let mut session = session(DevAuthoriser);
    hello(&mut session, Some("ann"));
    let error = DecodeError::from(Invalid {
        code: Code::Oversize,
        message: "z.size is limited to 5 bytes, found 6".into(),
    });
    let effects = session.handle(now(1), Input::Message(Err(error)));
    assert!(
        matches!(&effects[..], [Effect::Close(Code::Oversize, why)] if why.contains("found 6")),
        "{effects:?}"
    );
}
